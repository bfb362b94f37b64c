"""What a data set says about the image a model was given, read from its files when needed.

H×W the image. The evaluators of a data set share one GroundTruth, and so the panoptic map read last.
"""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata

from mask_former.data.catalog import dataset_metadata, dataset_records, thing_ids
from mask_former.data.id_map import read_id_map
from mask_former.data.segments import read_semantic_segments
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

Record = dict[str, Any]


class GroundTruth:
    """The records of a data set by image, and their labels."""

    def __init__(self, name: str, records: list[Record], metadata: Metadata) -> None:
        """`records` as in detectron2's DatasetCatalog; `metadata.stuff_classes` names all C classes."""
        self.name = name
        self.records = records
        self.class_names: list[str] = list(metadata.stuff_classes)
        self.thing_ids = thing_ids(metadata)
        self.ignore_label: int = metadata.get("ignore_label", 255)
        self.metadata = metadata
        self.has_panoptic = bool(records) and all("pan_seg_file_name" in record for record in records)
        self.has_semantic = self.has_panoptic or (
            bool(records) and all("sem_seg_file_name" in record for record in records)
        )
        self.has_instances = self.has_panoptic and bool(self.thing_ids)
        self._position = {record["file_name"]: index for index, record in enumerate(records)}
        self._last_map: tuple[str, np.ndarray] | None = None

    @classmethod
    def of_dataset(cls, name: str) -> "GroundTruth":
        """Ground truth of a registered data set; InputError when it is unknown, unfit or incomplete."""
        metadata = dataset_metadata(name)
        if not metadata.get("stuff_classes"):
            raise InputError(
                f"data set {name} has no classes for segmentation; name a panoptic or semantic one"
            )
        return cls(name, dataset_records(name), metadata)

    def labels(self) -> str:
        """The kinds of ground truth there are, in words."""
        kinds = {"panoptic": self.has_panoptic, "semantic": self.has_semantic, "instance": self.has_instances}
        return ", ".join(kind for kind, there in kinds.items() if there) or "no"

    def warn_if_partial(self, evaluated: int) -> None:
        """Log a warning when the numbers are not those of the whole data set."""
        if evaluated != len(self.records):
            logger.warning(
                "%s: %d of %d images were evaluated, the numbers are theirs",
                self.name,
                evaluated,
                len(self.records),
            )

    def position(self, sample: Mapping[str, Any]) -> int:
        """Index of the record a model input (`file_name`) was made from."""
        try:
            return self._position[sample["file_name"]]
        except KeyError:
            raise ValueError(f"{sample.get('file_name')} is not an image of data set {self.name}") from None

    def record(self, sample: Mapping[str, Any]) -> Record:
        """The record a model input was made from."""
        return self.records[self.position(sample)]

    def panoptic(self, record: Record) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """int32 H×W id map (0 void) and the segments, classes contiguous."""
        path = record["pan_seg_file_name"]
        if self._last_map is None or self._last_map[0] != path:
            self._last_map = (path, read_id_map(path))
        return self._last_map[1], record["segments_info"]

    def semantic(self, record: Record) -> np.ndarray:
        """int64 H×W contiguous classes, -1 where none counts: the ignore label, void, crowd.

        InputError names a file with a class the data set does not have.
        """
        return read_semantic_segments(record, len(self.class_names), self.ignore_label).class_map(void=-1)
