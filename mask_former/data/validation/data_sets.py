"""A whole data set, its JSON and every image, with the work spread over processes.

Classes are contiguous ids. Of the images, what stays in memory is a digest and a name each.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from mask_former.data.catalog import dataset_metadata, dataset_records
from mask_former.data.parallel import parallel_map
from mask_former.data.validation.annotations import Category, ImageTask, open_panoptic_json
from mask_former.data.validation.findings import Findings, Problem
from mask_former.data.validation.images import ImageReport, check_image
from mask_former.errors import InputError

Progress = Callable[[Iterable[ImageReport], int], Iterable[ImageReport]]
NAMES_SHOWN = 10


@dataclass
class ClassCount:
    """How often a class comes up, crowd apart; `kind` is "thing", "stuff" or "" (semantic labels alone)."""

    name: str
    kind: str
    images: int = 0
    segments: int = 0
    pixels: int = 0


@dataclass
class DataSetReport:
    """What a data set holds. crowd, void: segments and pixels; pixels: of all labels that could be read."""

    name: str
    images: int = 0
    pixels: int = 0
    void: int = 0
    crowd: int = 0
    crowd_pixels: int = 0
    most_segments: int = 0
    classes: list[ClassCount] = field(default_factory=list)
    digests: dict[bytes, str] = field(default_factory=dict)

    @property
    def segments(self) -> int:
        return sum(count.segments for count in self.classes)

    def add(self, image: ImageReport) -> list[Problem]:
        """Count an image in; returns its problems, among them that the same file was here before."""
        self.images += 1
        self.pixels += image.total
        self.void += image.void
        self.crowd += image.crowd
        self.crowd_pixels += image.crowd_pixels
        self.most_segments = max(self.most_segments, image.segments.total())
        for index, number in image.segments.items():
            self.classes[index].images += 1
            self.classes[index].segments += number
            self.classes[index].pixels += image.pixels[index]
        first = self.digests.setdefault(image.digest, image.image) if image.digest else image.image
        if first == image.image:
            return image.problems
        text = f"{image.image}: the same bytes as {first}; fine if both are meant to be there"
        return [*image.problems, Problem("note", "same image twice", text)]


def validate_coco_panoptic(
    name: str,
    images: str | Path,
    json_file: str | Path,
    pngs: str | Path,
    findings: Findings,
    *,
    workers: int = 1,
    progress: Progress = lambda reports, _total: reports,
    semantic: dict[str, str] | None = None,
) -> DataSetReport:
    """Check a data set in COCO's panoptic format.

    findings: gets all problems. progress: is given the reports of the images as they come, and their number,
    and hands them on. semantic: label file of an image file, where the data set has semantic labels as well.
    """
    for what, folder in (("images", images), ("panoptic PNGs", pngs)):
        if not Path(folder).is_dir():
            text = f"{folder}: no such folder of {what}; check its path and $DETECTRON2_DATASETS"
            findings.add([Problem("error", "folder missing", text)])
    content = open_panoptic_json(json_file, findings)
    if content is None:
        return DataSetReport(name)
    tasks: Iterator[ImageTask] = content.tasks(Path(images), Path(pngs))
    if semantic is not None:
        labels = semantic
        tasks = (_with_semantic(task, labels) for task in tasks)
    return _validate(name, tasks, len(content.annotations), content.categories, findings, workers, progress)


def validate_registered(
    name: str, findings: Findings, *, workers: int = 1, progress: Progress = lambda reports, _total: reports
) -> DataSetReport:
    """Check a data set of detectron2's catalog, with panoptic or with semantic labels alone.

    InputError when the name is unknown.
    """
    try:
        metadata = dataset_metadata(name)
    except InputError:
        if name not in MetadataCatalog.list():
            raise
        metadata = MetadataCatalog.get(name)  # a JSON that cannot be read is found again below
    records, refused = _records(name)
    json_file = metadata.get("panoptic_json")
    if refused and not (json_file and Path(json_file).exists()):
        findings.add(refused)  # the data set's own reader knows best where to get it
        return DataSetReport(name)
    if json_file:
        semantic = {r["file_name"]: r["sem_seg_file_name"] for r in records if "sem_seg_file_name" in r}
        errors = findings.count("error")
        report = validate_coco_panoptic(
            name,
            metadata.image_root,
            json_file,
            metadata.panoptic_root,
            findings,
            workers=workers,
            progress=progress,
            semantic=semantic or None,
        )
        if findings.count("error") == errors:
            findings.add(refused)  # what only the reader for training knows of
        return report
    categories = [Category(text.strip(), False) for text in metadata.get("stuff_classes", ())]
    if not categories or any("sem_seg_file_name" not in record for record in records):
        text = f"data set {name}: has neither panoptic nor semantic labels; name another in DATASETS"
        findings.add([Problem("error", "no labels for segmentation", text)])
        return DataSetReport(name)
    _without_partner(name, metadata, findings)
    tasks = _semantic_tasks(records, len(categories), metadata.get("ignore_label", 255))
    report = _validate(name, tasks, len(records), categories, findings, workers, progress)
    for count in report.classes:
        count.kind = ""
    return report


def _validate(
    name: str,
    tasks: Iterator[ImageTask],
    total: int,
    categories: Sequence[Category],
    findings: Findings,
    workers: int,
    progress: Progress,
) -> DataSetReport:
    kinds = [ClassCount(category.name, "thing" if category.is_thing else "stuff") for category in categories]
    report = DataSetReport(name, classes=kinds)
    checked = parallel_map(check_image, tasks, min(workers, max(1, total)), batch=4)
    for image in progress(checked, total):
        findings.add(report.add(image))
    absent = [count.name for count in report.classes if not count.pixels]
    if absent and report.images:
        listed = ", ".join(absent[:NAMES_SHOWN]) + (", ..." if len(absent) > NAMES_SHOWN else "")
        text = f"{name}: {len(absent)} of {len(kinds)} classes have no pixel: {listed}"
        mend = "they can be neither learnt nor measured here; add images of them, or drop them"
        findings.add([Problem("warning", "classes without a pixel", f"{text}; {mend}")])
    return report


def _records(name: str) -> tuple[list[dict[str, Any]], list[Problem]]:
    """The data set as training loads it, or none and the reason why it cannot be."""
    try:
        return dataset_records(name), []
    except InputError as error:
        return [], [Problem("error", "annotations unusable", str(error))]


def _semantic_tasks(records: list[dict[str, Any]], num_classes: int, ignore: int) -> Iterator[ImageTask]:
    for record in records:
        yield ImageTask(
            image=record["file_name"],
            semantic=record["sem_seg_file_name"],
            num_classes=num_classes,
            ignore_label=ignore,
        )


def _without_partner(name: str, metadata: Any, findings: Findings) -> None:
    """Warn of images without a label, which detectron2 leaves out, and of labels without an image."""
    folders = [metadata.get("image_root"), metadata.get("sem_seg_root")]
    if not all(folder and os.path.isdir(folder) for folder in folders):
        return
    stems = [{Path(entry).stem for entry in os.listdir(folder)} for folder in folders]
    for folder, here, there, what in ((folders[0], *stems, "label"), (folders[1], *stems[::-1], "image")):
        for stem in sorted(here - there):
            text = f"{folder}/{stem}: has no {what} of its name and is left out; add it or take this away"
            findings.add([Problem("warning", "image or label without its partner", text)])


def _with_semantic(task: ImageTask, labels: dict[str, str]) -> ImageTask:
    return ImageTask(**{**vars(task), "semantic": labels.get(task.image)})
