"""The images of a comparison: a registered data set, with ground truth, or a folder, without.

H×W the image.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog

from mask_former.data.id_map import unique_ids
from mask_former.data.segments import require_same_size, semantic_label_file
from mask_former.errors import InputError
from mask_former.evaluation import GroundTruth
from mask_former.evaluation.predictions import unique_names
from pisr_maskformer.visualization.differences import PanopticMap
from tools.predict import find_images

VOID = -1


@dataclass(frozen=True)
class Item:
    """An image of the comparison."""

    index: int
    name: str  # as people know it; any characters
    file: Path
    record: dict[str, Any] | None  # of the data set
    lone: bool  # no other image of the input has a file of this name

    @property
    def stem(self) -> str:
        """Begins the names of this image's files: plain characters, none twice, in the order of the input."""
        plain = re.sub(r"[^A-Za-z0-9-]+", "_", self.name).strip("_")[:48]
        return f"{self.index:05d}_{plain}" if plain else f"{self.index:05d}"


@dataclass(frozen=True)
class Truth:
    """The labels of one image."""

    panoptic: PanopticMap  # of semantic labels, one segment a class
    classes: np.ndarray  # int64 H×W, VOID where nothing counts


@dataclass(frozen=True)
class Inputs:
    """All images, and what is known about them."""

    name: str
    items: list[Item]
    ground_truth: GroundTruth | None

    def identity(self) -> dict[str, Any]:
        """What the images and their labels are, in words that change when a file changes."""
        found: dict[str, Any] = {
            "input": self.name,
            "images": [file_identity(item.file) for item in self.items],
        }
        if self.ground_truth is not None:
            json_file = self.ground_truth.metadata.get("panoptic_json")
            labels = [
                item.record[key]
                for item in self.items
                if item.record is not None
                for key in ("pan_seg_file_name", "sem_seg_file_name")
                if key in item.record
            ]
            found["truth"] = [
                file_identity(Path(file)) for file in ([json_file] if json_file else []) + labels
            ]
        return found

    def truth(self, item: Item, rgb: np.ndarray) -> Truth | None:
        """The labels of an image; None without ground truth. InputError names a label that does not fit."""
        if self.ground_truth is None or item.record is None:
            return None
        classes = self.ground_truth.semantic(item.record)
        require_same_size(classes.shape, rgb.shape[:2], semantic_label_file(item.record), str(item.file))
        if self.ground_truth.has_panoptic:
            return Truth(PanopticMap(*self.ground_truth.panoptic(item.record)), classes)
        present = [int(value) for value in unique_ids(classes)[0] if value != VOID]
        segments = [{"id": value + 1, "category_id": value} for value in present]
        return Truth(PanopticMap(classes + 1, segments), classes)


def file_identity(path: Path) -> list[str]:
    """Path, size and time of a file, or the path alone of one that is not there (yet)."""
    try:
        status = path.stat()
    except OSError:
        return [str(path.resolve())]
    return [str(path.resolve()), str(status.st_size), str(status.st_mtime_ns)]


def open_inputs(given: str, output: Path, first: int | None) -> Inputs:
    """A registered data set's name, or a folder; the `first` images, or all. InputError if it is neither."""
    if given in DatasetCatalog.list():
        ground_truth = GroundTruth.of_dataset(given)
        if not ground_truth.has_semantic:
            raise InputError(f"data set {given} has no panoptic or semantic labels; name its image folder")
        records = ground_truth.records
        files = [Path(record["file_name"]) for record in records]
    elif Path(given).exists():
        ground_truth, files = None, find_images([given], output)
        records = []
    else:
        raise InputError(
            f"--input {given}: neither a folder nor a data set that the configurations register "
            "(DATASETS.COCO_PANOPTIC); for saved predictions, --config-file names one that does"
        )
    names = unique_names(files)
    count = Counter(file.name for file in files)
    items = [
        Item(index, name, file, records[index] if records else None, count[file.name] == 1)
        for index, (name, file) in enumerate(zip(names, files, strict=True))
    ]
    return Inputs(given, items[:first], ground_truth)
