"""The label of one image, panoptic or semantic, in the one form that training works with.

Shape legend: H×W the image, n its segments. Everything that may be wrong with a label file is found here, on
the CPU, with the file and the offending id in the message: on a GPU it would be a "device-side assert".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mask_former.data.id_map import VOID_ID, find_runs, read_class_map, read_id_map
from mask_former.errors import InputError

VOID_INDEX = 0


@dataclass(frozen=True)
class SegmentMap:
    """Segments 1..n of an image as one map, whatever ids the file used, ready to be resized and cropped.

    index: H×W, the segment of each pixel, 0 = void; a segment may have no pixel. As few bytes a pixel as n
        needs, one mostly: `index_type`.
    classes: int64 (n,), `classes[k - 1]` is the contiguous class of segment k.
    """

    index: np.ndarray
    classes: np.ndarray

    def class_map(self, void: int) -> np.ndarray:
        """int64 H×W of classes, `void` where there is no segment."""
        return np.concatenate([[void], self.classes]).astype(np.int64)[self.index]


def index_type(count: int) -> np.dtype:
    """The type of the index map of `count` segments."""
    types = (np.dtype(name) for name in ("uint8", "uint16", "int32"))
    return next(kind for kind in types if count <= np.iinfo(kind).max)


def read_panoptic_segments(record: Mapping[str, Any], num_classes: int) -> SegmentMap:
    """The segments of a record's panoptic PNG, in the order of its segments_info.

    Crowd regions become void: they are no targets, and evaluation ignores them. Raises InputError on a pixel
    whose id is not in segments_info, and on a category that is not one of 0..num_classes-1.
    """
    path = record["pan_seg_file_name"]
    segments = record["segments_info"]
    for segment in segments:
        _require_class(segment["category_id"], num_classes, f"{path}: segment {segment['id']}")
    runs = find_runs(read_id_map(path))
    values = runs.values.tolist()
    unknown = set(values) - {VOID_ID} - {segment["id"] for segment in segments}
    if unknown:
        raise InputError(
            f"{path}: pixels have the id {min(unknown)}, which the image's segments_info does not list; "
            f"add the segment to the JSON, or paint it 0 (void)"
        )
    targets = [segment for segment in segments if not segment.get("iscrowd", 0)]
    index_of_id = {segment["id"]: index for index, segment in enumerate(targets, start=1)}
    index_of_value = [index_of_id.get(value, VOID_INDEX) for value in values]
    classes = np.array([segment["category_id"] for segment in targets], dtype=np.int64)
    return SegmentMap(runs.paint(np.array(index_of_value, index_type(len(targets)))), classes)


def read_semantic_segments(record: Mapping[str, Any], num_classes: int, ignore_label: int) -> SegmentMap:
    """One segment per class that is present, from sem_seg_file_name or, without one, from the panoptic label.

    Crowd regions of a panoptic label are void. Raises InputError on a value that is neither `ignore_label`
    nor one of 0..num_classes-1.
    """
    path = semantic_label_file(record)
    if "sem_seg_file_name" in record:
        labels = read_class_map(path)
    else:
        ignore_label = -1  # any that is no class: a file's own ignore label may be one here
        labels = read_panoptic_segments(record, num_classes).class_map(ignore_label)
    runs = find_runs(labels)
    values = runs.values
    is_class = values != ignore_label
    for value in values[is_class]:
        _require_class(int(value), num_classes, f"{path}: a pixel")
    classes = values[is_class].astype(np.int64)
    index_of_value = np.where(is_class, np.cumsum(is_class), VOID_INDEX).astype(index_type(len(classes)))
    return SegmentMap(runs.paint(index_of_value), classes)


def semantic_label_file(record: Mapping[str, Any]) -> str:
    """The file that `read_semantic_segments` reads; InputError when the record names none."""
    for key in ("sem_seg_file_name", "pan_seg_file_name"):
        if key in record:
            return record[key]
    raise InputError(f"{record['file_name']}: its record names neither a semantic nor a panoptic label file")


def require_same_size(
    label: tuple[int, ...], image: tuple[int, ...], label_file: str, image_file: str
) -> None:
    """Raise InputError unless a label covers its image; both as (height, width), after EXIF rotation."""
    if label != image:
        label_size, image_size = (f"{width}×{height}" for height, width in (label, image))
        raise InputError(
            f"{label_file}: the label is {label_size} pixels, but its image {image_file} is {image_size} "
            f"(EXIF rotation applied); make them the same size"
        )


def _require_class(value: int, num_classes: int, where: str) -> None:
    if not 0 <= value < num_classes:
        raise InputError(
            f"{where} has class {value}, but the model has classes 0..{num_classes - 1}; correct the label "
            f"or set MODEL.SEM_SEG_HEAD.NUM_CLASSES"
        )
