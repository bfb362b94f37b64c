"""ADE20K's panoptic, instance and semantic labels of one image, and the JSON files of a split.

The layout is that of mask_former/data/ade20k.py. H×W the image. What an image's labels were made from and
what was made is kept as checksums, so that a later run knows what is whole (`is_whole`) without making it
again.
"""

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_former.data.ade20k import (
    SPLIT_FOLDERS,
    THING_CLASSES,
    ade20k_categories,
    category_of_id,
    panoptic_ids,
    panoptic_paths,
    semantic_label,
)
from mask_former.data.id_map import (
    VOID_ID,
    measure_segments,
    read_class_map,
    read_id_map,
    read_image_size,
    read_rgb_label,
    write_id_map,
    write_png,
)
from mask_former.errors import InputError

# To be raised by whoever changes what is written, so that files of an older version are made again.
VERSION = 1


@dataclass(frozen=True)
class Split:
    """Where "train" or "val" lies: the challenge's files under `source`, those made here under `output`."""

    name: str
    source: Path
    output: Path

    @property
    def images(self) -> Path:
        return self.source / "images" / SPLIT_FOLDERS[self.name]

    @property
    def scenes(self) -> Path:
        return self.source / "annotations" / SPLIT_FOLDERS[self.name]

    @property
    def instances(self) -> Path:
        return self.source / "annotations_instance" / SPLIT_FOLDERS[self.name]

    @property
    def semantic(self) -> Path:
        return self.output / "annotations_detectron2" / SPLIT_FOLDERS[self.name]

    @property
    def panoptic(self) -> Path:
        return Path(panoptic_paths(self.output, self.name)["panoptic_root"])

    @property
    def panoptic_json(self) -> Path:
        return Path(panoptic_paths(self.output, self.name)["panoptic_json"])

    @property
    def instance_json(self) -> Path:
        return self.output / f"ade20k_instance_{self.name}.json"

    @property
    def journal(self) -> Path:
        return self.output / f"prepare_ade20k_{self.name}.jsonl"

    def image_names(self) -> list[str]:
        """The images without their suffix, sorted; empty when there is no folder of them."""
        return sorted(path.stem for path in self.images.glob("*.jpg"))


@dataclass(frozen=True)
class Converted:
    """An image whose labels are made. `instances`, `panoptic` and `segments` are None without instances.

    scene, instances: checksums of the files read; semantic, panoptic: of the files made. segments: the
    panoptic JSON's segments_info; those of things also have their mask as "segmentation", COCO's RLE.
    """

    name: str
    height: int
    width: int
    scene: int
    instances: int | None
    semantic: int
    panoptic: int | None
    segments: list[dict[str, Any]] | None
    version: int = VERSION


def convert_image(split: Split, name: str) -> Converted:
    """Write one image's labels: panoptic and semantic, or semantic alone when the split has no instances.

    InputError names a file that is missing, cannot be read, or does not fit the image.
    """
    scene_file, instance_file = split.scenes / f"{name}.png", split.instances / f"{name}.png"
    with_instances = split.instances.is_dir()
    # before the files are read: one that changes in between has another checksum next time
    scene_sum = checksum(scene_file)
    instance_sum = checksum(instance_file) if with_instances else None
    size = read_image_size(split.images / f"{name}.jpg")
    scene = read_class_map(scene_file)
    _require_size(scene, size, scene_file)
    semantic_file, panoptic_file = split.semantic / f"{name}.png", split.panoptic / f"{name}.png"
    write_png(semantic_file, semantic_label(scene))
    segments = None
    if with_instances:
        instances = read_rgb_label(instance_file)
        _require_size(instances, size, instance_file)
        try:
            ids = panoptic_ids(scene, instances)
        except InputError as error:
            raise InputError(f"{instance_file}: {error}; unpack the annotations again") from error
        write_id_map(panoptic_file, ids)
        segments = describe_segments(panoptic_file, expected=ids)
    return Converted(
        name=name,
        height=size[0],
        width=size[1],
        scene=scene_sum,
        instances=instance_sum,
        semantic=checksum(semantic_file),
        panoptic=checksum(panoptic_file) if with_instances else None,
        segments=segments,
    )


def describe_segments(panoptic_file: Path, expected: np.ndarray) -> list[dict[str, Any]]:
    """The segments of a panoptic PNG as it lies on the disk, which must be `expected`, int H×W of ids."""
    ids = read_id_map(panoptic_file)
    if not np.array_equal(ids, expected):
        raise InputError(f"{panoptic_file}: reads back otherwise than it was written; check the disk")
    segments = []
    for key, (area, box) in measure_segments(ids).items():
        category = category_of_id(key)
        segment: dict[str, Any] = {"id": key, "category_id": category, "iscrowd": 0, "area": area}
        segment["bbox"] = box
        if category in THING_CLASSES:
            segment["segmentation"] = _run_lengths(ids == key)
        segments.append(segment)
    described = sum(segment["area"] for segment in segments)
    assert described == np.count_nonzero(ids != VOID_ID), f"{panoptic_file}: areas do not add up"
    return segments


def is_whole(split: Split, image: Converted) -> bool:
    """Whether an image's labels are those that `convert_image` would make now.

    A folder of instances that is gone since does not count as a change.
    """
    name = f"{image.name}.png"
    files = {split.scenes / name: image.scene, split.semantic / name: image.semantic}
    if image.panoptic is not None:
        files[split.panoptic / name] = image.panoptic
    if split.instances.is_dir():
        files[split.instances / name] = -1 if image.instances is None else image.instances
    try:
        size = read_image_size(split.images / f"{image.name}.jpg")
        same = all(checksum(path) == expected for path, expected in files.items())
    except InputError:
        return False
    return same and size == (image.height, image.width) and image.version == VERSION


def checksum(path: Path) -> int:
    """CRC-32 of a file's bytes; InputError when it cannot be read."""
    try:
        return zlib.crc32(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); unpack the folder again") from error


def panoptic_content(images: Sequence[Converted]) -> bytes:
    """The COCO-panoptic JSON of a split."""
    annotations = [
        {
            "image_id": image.name,
            "file_name": f"{image.name}.png",
            "segments_info": [
                {key: value for key, value in segment.items() if key != "segmentation"}
                for segment in image.segments or ()
            ],
        }
        for image in images
    ]
    return _json(images, annotations, ade20k_categories())


def instance_content(images: Sequence[Converted]) -> bytes:
    """COCO's instance JSON of a split: the things, with the image and category ids of the panoptic one."""
    annotations: list[dict[str, Any]] = []
    for image in images:
        for segment in image.segments or ():
            if "segmentation" in segment:
                # numbered over all images from 1: COCO's evaluation takes 0 for "no match"
                annotations.append({**segment, "id": len(annotations) + 1, "image_id": image.name})
    things = [category for category in ade20k_categories() if category["isthing"]]
    return _json(images, annotations, things)


def _json(images: Iterable[Converted], annotations: list[Any], categories: list[Any]) -> bytes:
    listed = [
        {"id": image.name, "file_name": f"{image.name}.jpg", "height": image.height, "width": image.width}
        for image in images
    ]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode()


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """A bool H×W mask as COCO's compressed RLE, in types that JSON has."""
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode("ascii")}


def _require_size(label: np.ndarray, size: tuple[int, int], path: Path) -> None:
    if label.shape[:2] != size:
        raise InputError(f"{path}: size {label.shape[:2]} is not its image's {size}; unpack both again")
