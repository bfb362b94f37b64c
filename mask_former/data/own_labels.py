"""Panoptic labels in COCO's format from images with a PNG of classes and a PNG of instance numbers each.

H×W the image. A pixel of the class PNG holds a category's id, or a value that stands for void. A pixel of the
instance PNG holds the number of its instance, 0 for none; numbers need to differ within a class only, and
those of stuff do not count.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mask_former.atomic_write import replace_file
from mask_former.data.id_map import (
    VOID_ID,
    measure_segments,
    read_class_map,
    read_id_map,
    read_image_size,
    unique_ids,
    write_id_map,
)
from mask_former.data.panoptic_json import checked_categories
from mask_former.data.segments import require_same_size
from mask_former.errors import InputError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
MAX_INSTANCE = 2**16 - 1


@dataclass(frozen=True)
class OwnLabels:
    """Where an own data set lies, and where its panoptic PNGs go. instances: None without things."""

    images: Path
    classes: Path
    instances: Path | None
    pngs: Path
    categories: tuple[dict[str, Any], ...]
    void: tuple[int, ...]

    def image_files(self) -> list[str]:
        """Names of the images, sorted; InputError when there is none, or a label is missing or ambiguous."""
        if not self.images.is_dir():
            raise InputError(f"{self.images}: no such folder; check --images")
        found = sorted(path for path in self.images.iterdir() if path.suffix.lower() in SUFFIXES)
        if not found:
            raise InputError(f"{self.images}: holds no images; looked for {', '.join(SUFFIXES)}")
        for one, other in zip(found, found[1:], strict=False):
            if one.stem == other.stem:
                raise InputError(
                    f"{other}: has the name of {one.name}, and so the same label; rename one of them"
                )
        for folder in (self.classes, self.instances):
            absent = [path.stem for path in found if folder and not (folder / f"{path.stem}.png").is_file()]
            if absent:
                count = f"{len(absent)} of {len(found)} images"
                raise InputError(f"{folder}/{absent[0]}.png: no such file, as for {count}; add the labels")
        return [path.name for path in found]


@dataclass(frozen=True)
class MadeLabel:
    """An image's entries in the JSON. without_instance: pixels of things that have no instance number."""

    image: dict[str, Any]
    annotation: dict[str, Any]
    without_instance: int


def make_label(labels: OwnLabels, image_name: str) -> MadeLabel:
    """Write the panoptic PNG of one image; areas and boxes are those of the file as it lies on the disk."""
    stem = Path(image_name).stem
    class_file = labels.classes / f"{stem}.png"
    classes = read_class_map(class_file)
    size = read_image_size(labels.images / image_name)
    require_same_size(classes.shape, size, str(class_file), str(labels.images / image_name))
    numbers = np.zeros_like(classes)
    if labels.instances is not None:
        instance_file = labels.instances / f"{stem}.png"
        numbers = read_class_map(instance_file)
        require_same_size(numbers.shape, size, str(instance_file), str(labels.images / image_name))
        if numbers.max(initial=0) > MAX_INSTANCE:
            raise InputError(f"{instance_file}: holds the number {numbers.max()}; use 0..{MAX_INSTANCE}")
    try:
        ids, category_of_id = segment_ids(classes, numbers, labels.categories, labels.void)
    except InputError as error:
        raise InputError(f"{class_file}: {error}") from error
    png = labels.pngs / f"{stem}.png"
    write_id_map(png, ids)
    segments = [
        {"id": key, "category_id": category_of_id[key], "iscrowd": 0, "area": area, "bbox": box}
        for key, (area, box) in measure_segments(read_id_map(png)).items()
    ]
    return MadeLabel(
        image={"id": stem, "file_name": image_name, "height": size[0], "width": size[1]},
        annotation={"image_id": stem, "file_name": png.name, "segments_info": segments},
        without_instance=int(np.count_nonzero((ids == VOID_ID) & ~np.isin(classes, labels.void))),
    )


def segment_ids(
    classes: np.ndarray, numbers: np.ndarray, categories: Sequence[dict[str, Any]], void: Sequence[int]
) -> tuple[np.ndarray, dict[int, int]]:
    """Segments 1, 2, ... of an image: int32 H×W of their ids, and the category of each.

    classes, numbers: H×W, see the module's docstring. A segment is a stuff class, or a class and instance
    number of a thing. Things without an instance are void. Raises InputError on a class that is neither a
    category nor void.
    """
    is_thing = {category["id"]: bool(category["isthing"]) for category in categories}
    values, positions = unique_ids(classes)
    unknown = [value for value in values.tolist() if value not in is_thing and value not in void]
    if unknown:
        raise InputError(
            f"pixels have the class {unknown[0]}, which is not listed; name it, or name it as --void"
        )
    void_value = np.array([value in void for value in values.tolist()])
    thing_value = np.array([is_thing.get(value, False) for value in values.tolist()])
    void_pixels, thing_pixels = void_value[positions], thing_value[positions]
    # one number for each pair of class and instance: the class's position above, the instance below
    pairs = positions.astype(np.int64) * (MAX_INSTANCE + 1) + np.where(thing_pixels, numbers, 0)
    pairs[void_pixels | (thing_pixels & (numbers == 0))] = -1
    present, ids = unique_ids(pairs)
    first = int(present[:1].tolist() != [-1])  # where nothing is void, the first segment must not be 0
    category_of_id = {
        index + first: int(values[pair // (MAX_INSTANCE + 1)])
        for index, pair in enumerate(present.tolist())
        if pair >= 0
    }
    return (ids + first).astype(np.int32), category_of_id


def read_names(path: Path) -> tuple[dict[str, Any], ...]:
    """The categories of a JSON list of {"id", "name", "isthing"}; InputError names what is unfit in it."""
    try:
        listed = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check --names") from error
    except ValueError as error:
        raise InputError(f"{path}: is not JSON ({error}); mend it") from error
    if not isinstance(listed, list):
        raise InputError(f'{path}: must be a list of {{"id": 1, "name": "road", "isthing": 0}}')
    return tuple(checked_categories({"categories": listed}, path))


def write_panoptic_json(path: Path, made: Iterable[MadeLabel], categories: Sequence[dict[str, Any]]) -> None:
    """The COCO-panoptic JSON of these images, in their order; it appears whole or not at all."""
    made = list(made)
    content = {
        "images": [label.image for label in made],
        "annotations": [label.annotation for label in made],
        "categories": list(categories),
    }
    with replace_file(path, durable=True) as file:
        file.write(json.dumps(content).encode())
