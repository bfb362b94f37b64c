"""The JSON of a data set in COCO's panoptic format, checked entry by entry instead of up to the first fault.

What is fit becomes an `ImageTask` per annotation, for `images.check_image`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mask_former.data.panoptic_json import (
    ANNOTATION,
    IMAGE,
    SEGMENT,
    Field,
    checked_categories,
    read_panoptic_json,
    require_fields,
)
from mask_former.data.validation.findings import Findings, Problem
from mask_former.errors import InputError


@dataclass(frozen=True)
class Segment:
    """A segment as the JSON tells of it; `category` is contiguous, None when the JSON does not list it."""

    id: int
    category: int | None
    crowd: bool
    area: Any
    bbox: Any


@dataclass(frozen=True)
class ImageTask:
    """The files of an image. segments: those of the panoptic PNG; size: (height, width) in the JSON."""

    image: str
    png: str | None = None
    semantic: str | None = None
    size: tuple[int, int] | None = None
    segments: tuple[Segment, ...] = ()
    num_classes: int = 0
    ignore_label: int = 255


@dataclass(frozen=True)
class Category:
    name: str
    is_thing: bool


class PanopticJson:
    """A JSON that can be read; what is wrong with its entries goes to `findings`."""

    def __init__(self, path: str | Path, findings: Findings) -> None:
        """InputError when it is missing, is no COCO-panoptic JSON or has no fit categories."""
        self.path, self.findings = path, findings
        content = read_panoptic_json(path)
        listed = sorted(checked_categories(content, path), key=lambda category: category["id"])
        self.categories = [Category(str(entry["name"]), bool(entry["isthing"])) for entry in listed]
        self.contiguous = {entry["id"]: index for index, entry in enumerate(listed)}
        self.images = self._images(content["images"])
        self.annotations = content["annotations"]
        if not self.annotations:
            text = f"{path}: lists no annotation at all; check that it is the right file"
            self._error("no annotations", text)

    def tasks(self, images: Path, pngs: Path) -> Iterator[ImageTask]:
        """What to check of every annotation that names an image, in the JSON's order."""
        annotated: set[int | str] = set()
        png_names: Counter[str] = Counter()
        for position, annotation in enumerate(self.annotations):
            where = f"{self.path}: annotations[{position}]"
            if not self._is_fit(annotation, ANNOTATION, where):
                continue
            key, png = annotation["image_id"], annotation["file_name"]
            if key not in self.images:
                text = f"{where} is for image {key!r}, which is not listed under 'images'; add or drop it"
                self._error("annotation of no image", text)
                continue
            if key in annotated:
                text = f"{where} is a second annotation of image {key!r}; keep one"
                self._error("image annotated twice", text)
                continue
            annotated.add(key)
            png_names[png] += 1
            if png_names[png] == 2:
                self._warn("PNG listed twice", f"{where}: {png} is another image's label too; name its own")
            image = self.images[key]
            yield ImageTask(
                image=str(images / image["file_name"]),
                png=str(pngs / png),
                size=(image["height"], image["width"]),
                segments=tuple(self._segments(annotation["segments_info"], where)),
                num_classes=len(self.categories),
            )
        for key, image in self.images.items():
            if key not in annotated:
                text = f"{self.path}: image {key!r} ({image['file_name']}) has no annotation"
                self._warn("image without annotation", f"{text} and is left out; add one or drop it")

    def _images(self, listed: list[Any]) -> dict[int | str, Mapping[str, Any]]:
        by_id: dict[int | str, Mapping[str, Any]] = {}
        file_names: Counter[str] = Counter()
        for position, image in enumerate(listed):
            where = f"{self.path}: images[{position}]"
            if not self._is_fit(image, IMAGE, where):
                continue
            if image["id"] in by_id:
                text = f"{where} has the id {image['id']!r} of another image; give each its own"
                self._error("image id used twice", text)
                continue
            by_id[image["id"]] = image
            file_names[image["file_name"]] += 1
            if file_names[image["file_name"]] == 2:
                text = f"{where}: {image['file_name']} is listed already, under another id; keep one of them"
                self._error("image listed twice", text)
        return by_id

    def _segments(self, listed: list[Any], where: str) -> Iterator[Segment]:
        seen: set[int] = set()
        for position, entry in enumerate(listed):
            if not self._is_fit(entry, SEGMENT, f"{where}, segments_info[{position}]"):
                continue
            key, crowd = entry["id"], entry.get("iscrowd", 0) == 1
            if key in seen:
                text = f"{where}: the segment id {key} stands twice in its image; give each its own"
                self._error("segment id used twice", text)
                continue
            seen.add(key)
            category = self.contiguous.get(entry["category_id"])
            if category is None:
                text = f"{where}: segment {key} has category {entry['category_id']}, which is not listed"
                self._error("unknown category", f"{text}; add it to 'categories' or correct the segment")
            if crowd and category is not None and not self.categories[category].is_thing:
                text = f"{where}: segment {key} of stuff ({self.categories[category].name}) is a crowd"
                self._warn("crowd of stuff", f"{text}, and so no target; write iscrowd 0")
            yield Segment(key, category, crowd, entry.get("area"), entry.get("bbox"))

    def _is_fit(self, entry: Any, fields: Mapping[str, Field], where: str) -> bool:
        """Whether all fields of `entry` are there and fit; else an error tells of the first that is not."""
        try:
            require_fields(entry, fields, where)
        except InputError as error:
            self._error("field missing or unfit", str(error))
            return False
        return True

    def _error(self, kind: str, text: str) -> None:
        self.findings.add([Problem("error", kind, text)])

    def _warn(self, kind: str, text: str) -> None:
        self.findings.add([Problem("warning", kind, text)])


def open_panoptic_json(path: str | Path, findings: Findings) -> PanopticJson | None:
    """The JSON, or None with an error in `findings` when nothing can be read from it."""
    try:
        return PanopticJson(path, findings)
    except InputError as error:
        findings.add([Problem("error", "annotations unusable", str(error))])
        return None
