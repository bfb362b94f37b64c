"""Any data set in COCO's panoptic format (images, a JSON, a folder of PNGs), registered by configuration.

    DATASETS:
      COCO_PANOPTIC:
        my_train: {IMAGES: my/images, JSON: my/train.json, PNGS: my/train_png}
      TRAIN: ("my_train",)

Relative paths start at $DETECTRON2_DATASETS. The classes are those of the JSON's "categories", contiguous ids
by ascending dataset id. A record is a dict: file_name, image_id, height, width, pan_seg_file_name and
segments_info, a list of {"id", "category_id" (contiguous), "iscrowd" 0 or 1, "isthing", "area", "bbox"}.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data.catalog import datasets_root, panoptic_metadata
from mask_former.data.panoptic_json import (
    ANNOTATION,
    IMAGE,
    SEGMENT,
    checked_categories,
    read_panoptic_json,
    require_fields,
)
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

CONFIG_PATHS = ("IMAGES", "JSON", "PNGS")
Record = dict[str, Any]


def register_from_config(cfg: CfgNode) -> None:
    """Register every data set of cfg.DATASETS.COCO_PANOPTIC; may be called again with the same paths.

    No file is read or looked for: a data set that is not used, or only its JSON, may be missing.
    """
    for name, paths in cfg.DATASETS.COCO_PANOPTIC.items():
        given = dict(paths) if isinstance(paths, Mapping) else {}
        are_paths = all(path and isinstance(path, str) for path in given.values())
        if set(given) != set(CONFIG_PATHS) or not are_paths:
            keys = ", ".join(CONFIG_PATHS)
            raise InputError(f"DATASETS.COCO_PANOPTIC.{name}: must give paths for {keys}, not {given}")
        root = datasets_root()
        register_coco_panoptic(name, *(root / Path(given[key]).expanduser() for key in CONFIG_PATHS))


def register_coco_panoptic(
    name: str,
    image_root: str | Path,
    json_file: str | Path,
    png_root: str | Path,
    *,
    evaluator_type: str = "coco_panoptic_seg",
) -> None:
    """Register a data set under `name`; its JSON is read when `dataset_metadata` or `dataset_records` asks.

    Nothing happens when the same paths are registered already. InputError when `name` stands for something
    else.
    """
    paths = {"image_root": str(image_root), "panoptic_json": str(json_file), "panoptic_root": str(png_root)}
    if name in DatasetCatalog.list():
        _require_same_paths(name, paths)
        return
    DatasetCatalog.register(name, lambda: load_coco_panoptic(image_root, json_file, png_root))
    MetadataCatalog.get(name).set(**paths, evaluator_type=evaluator_type)


def load_coco_panoptic(image_root: str | Path, json_file: str | Path, png_root: str | Path) -> list[Record]:
    """The records of a data set, in the order of the JSON's annotations (see the module's docstring).

    Listed images without an annotation are left out with a warning. InputError, one line, when the JSON, a
    folder or a required key is missing, a value has the wrong type, an id or file name stands twice, or an
    annotation names an unknown image or category. Single image and PNG files are not looked for here: a
    hundred thousand look-ups on network storage take minutes.
    """
    for key, folder in (("image", image_root), ("panoptic PNG", png_root)):
        if not Path(folder).is_dir():
            raise InputError(f"{folder}: no such folder of {key}s; check its path and $DETECTRON2_DATASETS")
    content = read_panoptic_json(json_file)
    metadata = panoptic_metadata(checked_categories(content, json_file))
    things = metadata["thing_dataset_id_to_contiguous_id"]
    contiguous = {**things, **metadata["stuff_dataset_id_to_contiguous_id"]}
    images = _images_by_id(content["images"], json_file)
    records: dict[Any, Record] = {}
    for position, annotation in enumerate(content["annotations"]):
        where = f"{json_file}: annotations[{position}]"
        require_fields(annotation, ANNOTATION, where)
        image_id = annotation["image_id"]
        if image_id not in images:
            raise InputError(
                f"{where} is for image {image_id!r}, which is not listed under 'images'; add or drop it"
            )
        if image_id in records:
            raise InputError(f"{where} is a second annotation of image {image_id!r}; keep one")
        image = images[image_id]
        records[image_id] = {
            "file_name": str(Path(image_root) / image["file_name"]),
            "image_id": image_id,
            "height": image["height"],
            "width": image["width"],
            "pan_seg_file_name": str(Path(png_root) / annotation["file_name"]),
            "segments_info": _segments(annotation["segments_info"], contiguous, things, where),
        }
    if not records:
        raise InputError(f"{json_file}: lists no annotation at all; check that it is the right file")
    if len(records) < len(images):
        left_out = len(images) - len(records)
        logger.warning("%s: %d listed images have no annotation and are left out", json_file, left_out)
    return list(records.values())


def _images_by_id(images: list[Any], json_file: str | Path) -> dict[Any, Mapping[str, Any]]:
    by_id: dict[Any, Mapping[str, Any]] = {}
    file_names: set[str] = set()
    for position, image in enumerate(images):
        where = f"{json_file}: images[{position}]"
        require_fields(image, IMAGE, where)
        if image["id"] in by_id:
            raise InputError(f"{where}: two entries of 'images' have the same id {image['id']!r}; keep one")
        if image["file_name"] in file_names:  # evaluation finds an image's labels by its file
            raise InputError(f"{where} has the same file_name as another: {image['file_name']!r}; keep one")
        by_id[image["id"]] = image
        file_names.add(image["file_name"])
    return by_id


def _segments(
    segments: list[Any], contiguous: Mapping[int, int], things: Mapping[int, int], where: str
) -> list[dict[str, Any]]:
    """An annotation's segments_info with contiguous categories; area and box are kept when given."""
    converted: dict[int, dict[str, Any]] = {}
    for position, segment in enumerate(segments):
        entry = f"{where}, segments_info[{position}]"
        require_fields(segment, SEGMENT, entry)
        segment_id, category = segment["id"], segment["category_id"]
        if category not in contiguous:
            raise InputError(
                f"{entry}: segment {segment_id} has category {category}, not listed under 'categories'; "
                "add it there or correct the segment"
            )
        if segment_id in converted:
            raise InputError(f"{entry}: the id {segment_id} stands twice in its image; give each its own")
        converted[segment_id] = {
            **{key: segment[key] for key in ("area", "bbox") if key in segment},
            "id": segment_id,
            "category_id": contiguous[category],
            "iscrowd": int(segment.get("iscrowd", 0)),
            "isthing": category in things,
        }
    return list(converted.values())


def _require_same_paths(name: str, paths: Mapping[str, str]) -> None:
    metadata = MetadataCatalog.get(name)
    for field, path in paths.items():
        registered = getattr(metadata, field, None)
        if registered is None or Path(registered).absolute() != Path(path).absolute():
            raise InputError(
                f"data set {name!r} is already registered with {field} {registered}, not {path}; "
                f"choose another name"
            )
