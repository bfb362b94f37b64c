"""IDD-Lite: 1403 + 204 street scenes of India, 7 classes, as `idd_lite_train` and `idd_lite_val` (semantic).

Layout under $DETECTRON2_DATASETS/idd20k_lite, as it is distributed:
    leftImg8bit/{train,val}/DRIVE/NAME_image.jpg     320×227 pixels
    gtFine/{train,val}/DRIVE/NAME_label.png          0..6, void 255

Source of the class names: the coarsest level of IDD's hierarchy (Varma et al., "IDD: A Dataset for Exploring
Problems of Autonomous Navigation in Unconstrained Environments", WACV 2019). None of them has instances here.
"""

from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data.catalog import IGNORE_LABEL, class_colors, datasets_root
from mask_former.errors import InputError

FOLDER = "idd20k_lite"
SPLITS = ("train", "val")
IMAGES, LABELS = "leftImg8bit", "gtFine"
IMAGE_END, LABEL_END = "_image.jpg", "_label.png"
CLASSES = (
    "drivable",
    "non-drivable",
    "living thing",
    "vehicle",
    "roadside object",
    "far object",
    "sky",
)


def load_idd_lite(root: Path, split: str) -> list[dict[str, Any]]:
    """Records of "train" or "val" (file_name, sem_seg_file_name, image_id DRIVE/NAME), by DRIVE and NAME.

    InputError names a folder that is missing or empty, or the first label without its image.
    """
    labels = sorted((root / LABELS / split).glob(f"*/*{LABEL_END}"))
    if not labels:
        raise InputError(
            f"{root / LABELS / split}: holds no */*{LABEL_END}; unpack IDD-Lite there, or set "
            "$DETECTRON2_DATASETS to the folder above"
        )
    records = []
    for label in labels:
        drive, name = label.parent.name, label.name[: -len(LABEL_END)]
        image = root / IMAGES / split / drive / f"{name}{IMAGE_END}"
        if not image.is_file():
            raise InputError(f"{label}: its image {image} is missing; unpack IDD-Lite again")
        records.append(
            {"file_name": str(image), "sem_seg_file_name": str(label), "image_id": f"{drive}/{name}"}
        )
    return records


def register_idd_lite() -> None:
    """Register both splits under the current $DETECTRON2_DATASETS; needs no data on disk."""
    root = datasets_root() / FOLDER
    for split in SPLITS:
        name = f"idd_lite_{split}"
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(load_idd_lite, root, split))
            MetadataCatalog.get(name).set(
                stuff_classes=list(CLASSES),
                stuff_colors=class_colors(len(CLASSES)),
                ignore_label=IGNORE_LABEL,
                image_root=str(root / IMAGES / split),
                sem_seg_root=str(root / LABELS / split),
                evaluator_type="sem_seg",
            )
