"""The files of one image: there, decodable, of one size, and telling the same as the JSON.

H×W the image.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mask_former.data.id_map import (
    VOID_ID,
    measure_segments,
    read_class_map,
    read_id_map,
    read_rgb_image,
    unique_ids,
)
from mask_former.data.segments import require_same_size
from mask_former.data.validation.annotations import ImageTask, Segment
from mask_former.data.validation.findings import Problem
from mask_former.errors import InputError

PQ_TOOLS = "tools that compute PQ read it there; write it again from the PNG"


@dataclass
class ImageReport:
    """What was found in one image. digest: of the image file's bytes. Classes are contiguous ids.

    pixels, segments: of each class, without crowd; crowd, void: segments and pixels; total: labelled or not.
    """

    image: str
    digest: bytes | None = None
    problems: list[Problem] = field(default_factory=list)
    pixels: Counter[int] = field(default_factory=Counter)
    segments: Counter[int] = field(default_factory=Counter)
    crowd: int = 0
    crowd_pixels: int = 0
    void: int = 0
    total: int = 0


def check_image(task: ImageTask) -> ImageReport:
    """Read an image and its labels, and compare them with each other and with the JSON."""
    report = ImageReport(task.image)
    try:
        size = read_rgb_image(task.image).shape[:2]
        report.digest = hashlib.blake2b(Path(task.image).read_bytes(), digest_size=16).digest()
    except InputError as error:
        report.problems.append(Problem("error", "image missing or unreadable", str(error)))
        size = None
    if size and task.size and size != task.size:
        (height, width), (json_height, json_width) = size, task.size
        text = f"{task.image}: is {width}×{height} pixels, but {json_width}×{json_height} in the JSON"
        report.problems.append(Problem("warning", "wrong size in the JSON", f"{text}; correct the JSON"))
    if task.png:
        _check_panoptic(task, task.png, size, report)
    if task.semantic:
        _check_semantic(task, task.semantic, size, report)
    if report.total and not report.segments and not any(p.level == "error" for p in report.problems):
        text = f"{task.png or task.semantic}: labels nothing but void or crowd; label it, or drop the image"
        report.problems.append(Problem("warning", "image without a target", text))
    return report


def _check_panoptic(task: ImageTask, png: str, size: tuple[int, ...] | None, report: ImageReport) -> None:
    try:
        ids = read_id_map(png)
    except InputError as error:
        report.problems.append(Problem("error", "panoptic PNG missing or unfit", str(error)))
        return
    report.problems += _size_problems(ids.shape, size, png, task.image)
    measured = measure_segments(ids)
    listed = {segment.id: segment for segment in task.segments}
    report.problems += _unlisted(measured.keys() - listed.keys(), png)
    report.problems += _without_pixels(listed.keys() - measured.keys(), png)
    report.problems += _wrong_measures(task.segments, measured, png)
    for key, (area, _) in measured.items():
        segment = listed.get(key)
        if segment is None or segment.category is None:
            continue
        if segment.crowd:
            report.crowd += 1
            report.crowd_pixels += area
        else:
            report.segments[segment.category] += 1
            report.pixels[segment.category] += area
    report.total = ids.size
    report.void = int(np.count_nonzero(ids == VOID_ID))


def _check_semantic(task: ImageTask, label: str, size: tuple[int, ...] | None, report: ImageReport) -> None:
    """The class of each pixel; counted when there is no panoptic label to count."""
    try:
        classes = read_class_map(label)
    except InputError as error:
        report.problems.append(Problem("error", "semantic label missing or unfit", str(error)))
        return
    report.problems += _size_problems(classes.shape, size, label, task.image)
    values, positions = unique_ids(classes)
    count = dict(zip(values.tolist(), np.bincount(positions.ravel()).tolist(), strict=True))
    void = count.pop(task.ignore_label, 0)
    if unknown := sorted(value for value in count if not 0 <= value < task.num_classes):
        which = f"{unknown[0]}{_more(unknown, 'classes')}"
        text = f"{label}: {count[unknown[0]]} pixels have the class {which}, not"
        mend = f"one of 0..{task.num_classes - 1} or {task.ignore_label} (void); correct the label"
        report.problems.append(Problem("error", "unknown class", f"{text} {mend}"))
    if task.png is None:
        known = {value: pixels for value, pixels in count.items() if value not in unknown}
        report.pixels, report.segments = Counter(known), Counter(dict.fromkeys(known, 1))
        report.void, report.total = void, classes.size


def _size_problems(
    label_size: tuple[int, ...], size: tuple[int, ...] | None, label: str, image: str
) -> Iterator[Problem]:
    if size is not None:
        try:
            require_same_size(label_size, size, label, image)
        except InputError as error:
            yield Problem("error", "image and label of different sizes", str(error))


def _unlisted(keys: set[int], png: str) -> Iterator[Problem]:
    if keys:
        text = f"{png}: pixels have the id {min(keys)}{_more(keys, 'ids')}, which the JSON does not list"
        mend = "add the segment to the JSON, or paint it 0 (void)"
        yield Problem("error", "pixels of a segment that is not listed", f"{text}; {mend}")


def _without_pixels(keys: set[int], png: str) -> Iterator[Problem]:
    if keys:
        text = f"{png}: segment {min(keys)}{_more(keys, 'segments')} of the JSON has no pixel"
        mend = "no target in training, a miss for PQ; take it out of the JSON"
        yield Problem("warning", "segment without a pixel", f"{text}: {mend}")


def _wrong_measures(
    segments: tuple[Segment, ...], measured: dict[int, tuple[int, list[int]]], png: str
) -> Iterator[Problem]:
    """The first segment of the image whose area or box in the JSON is not that of its pixels."""
    present = [segment for segment in segments if segment.id in measured]
    for index, word in enumerate(("area", "bbox")):
        wrong = [segment for segment in present if getattr(segment, word) != measured[segment.id][index]]
        if wrong:
            first = wrong[0]
            given, true = getattr(first, word), measured[first.id][index]
            which = f"{first.id}{_more(wrong, 'segments')}"
            text = f"{png}: segment {which} has {word} {true}, but {given} in the JSON"
            yield Problem("warning", f"wrong {word} in the JSON", f"{text}; {PQ_TOOLS}")


def _more(things: set[int] | list[int] | list[Segment], word: str) -> str:
    return f" (and {len(things) - 1} more {word})" if len(things) > 1 else ""
