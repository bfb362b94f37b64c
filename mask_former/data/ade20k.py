"""ADE20K panoptic: 150 classes, 100 of them things, as `ade20k_panoptic_train` and `ade20k_panoptic_val`.

Layout under $DETECTRON2_DATASETS/ADEChallengeData2016 (`tools/prepare_ade20k.py` makes what is marked *):
    images/{training,validation}/NAME.jpg
    annotations/{training,validation}/NAME.png            0 void, k is class k-1
    annotations_instance/{training,validation}/NAME.png   R instance category 1..100, G instance id, 0 none
    annotations_detectron2/{training,validation}/NAME.png *  class, void 255
    ade20k_panoptic_{train,val}/NAME.png and ade20k_panoptic_{train,val}.json *
    ade20k_instance_{train,val}.json *                    the things alone, in COCO's instance format
    prepare_ade20k_{train,val}.jsonl *                    the tool's journal; may be deleted
detectron2 itself registers the semantic `ade20k_sem_seg_{train,val}` on the same folders.

Sources: class names from detectron2 (Apache-2.0); the numbering of instance categories from
`categoryMapping.txt` of the ADE20K challenge's toolkit (BSD-3-Clause).
"""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES

from mask_former.data.catalog import IGNORE_LABEL, class_colors, datasets_root, panoptic_metadata
from mask_former.data.coco_panoptic import Record, load_coco_panoptic
from mask_former.data.panoptic_json import read_categories
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

FOLDER = "ADEChallengeData2016"
SPLIT_FOLDERS = {"train": "training", "val": "validation"}
PREPARE = "python tools/prepare_ade20k.py"

# Contiguous ids of the things. Instance category R of annotations_instance is THING_CLASSES[R - 1]: the
# challenge numbered its 100 instance categories in the order of their scene classes.
# fmt: off
THING_CLASSES = (
    7, 8, 10, 12, 14, 15, 18, 19, 20, 22, 23, 24, 27, 30, 31, 32, 33, 35, 36, 37,
    38, 39, 41, 42, 43, 44, 45, 47, 49, 50, 53, 55, 56, 57, 58, 62, 64, 65, 66, 67,
    69, 70, 71, 72, 73, 74, 75, 76, 78, 80, 81, 82, 83, 85, 86, 87, 88, 89, 90, 92,
    93, 95, 97, 98, 102, 103, 104, 107, 108, 110, 111, 112, 115, 116, 118, 119, 120, 121, 123, 124,
    125, 126, 127, 129, 130, 132, 133, 134, 135, 136, 137, 138, 139, 142, 143, 144, 146, 147, 148, 149,
)
# fmt: on

INSTANCE_STEP = 256  # the id of instance G of class c is (c + 1) + 256 G, of stuff class c it is c + 1


def ade20k_categories() -> list[dict[str, Any]]:
    """The 150 classes as COCO-style categories; dataset ids are 0..149, the same as the contiguous ids."""
    things = set(THING_CLASSES)
    names = [name.strip() for name in ADE20K_SEM_SEG_CATEGORIES]
    return [
        {"id": index, "name": name, "isthing": int(index in things), "color": color}
        for index, (name, color) in enumerate(zip(names, class_colors(len(names)), strict=True))
    ]


def panoptic_ids(scene: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Merge ADE20K's two annotations of an image into one panoptic id map.

    scene: H×W, 0 void, k is class k-1. instances: H×W×3 (or more channels), R instance category, G instance
    id. Returns int32 H×W: class + 1 for stuff, class + 1 + 256 G for instance G, 0 for void. Unique by
    construction. Instances are painted over stuff; pixels of a thing class that belong to no instance stay
    void. Raises InputError on a class above 150 or an instance category above 100.
    """
    if scene.max(initial=0) > len(ADE20K_SEM_SEG_CATEGORIES):
        raise InputError(f"scene class {scene.max()} is not one of 0..{len(ADE20K_SEM_SEG_CATEGORIES)}")
    category, number = instances[..., 0].astype(np.int32), instances[..., 1].astype(np.int32)
    if category.max(initial=0) > len(THING_CLASSES):
        raise InputError(f"instance category {category.max()} is not one of 0..{len(THING_CLASSES)}")
    things = np.array(THING_CLASSES)
    ids = np.where(np.isin(scene, things + 1), 0, scene).astype(np.int32)
    scene_value = np.concatenate([[0], things + 1]).astype(np.int32)[category]
    return np.where((category > 0) & (number > 0), scene_value + INSTANCE_STEP * number, ids)


def category_of_id(segment_id: int) -> int:
    """The contiguous class of a segment id made by `panoptic_ids`."""
    return segment_id % INSTANCE_STEP - 1


def semantic_label(scene: np.ndarray) -> np.ndarray:
    """detectron2's coding of a scene annotation: uint8 H×W, value - 1, void 255."""
    return np.where(scene == 0, IGNORE_LABEL, scene.astype(np.int32) - 1).astype(np.uint8)


def panoptic_paths(root: Path, split: str) -> dict[str, str]:
    """Where the panoptic data set of "train" or "val" lies under the ADEChallengeData2016 folder `root`."""
    return {
        "image_root": str(root / "images" / SPLIT_FOLDERS[split]),
        "panoptic_json": str(root / f"ade20k_panoptic_{split}.json"),
        "panoptic_root": str(root / f"ade20k_panoptic_{split}"),
    }


def load_ade20k_panoptic(root: Path, split: str) -> list[Record]:
    """Records of "train" or "val"; with sem_seg_file_name when annotations_detectron2 is there too.

    InputError names the first path that is missing, or a JSON with other classes than ADE20K's.
    """
    paths = panoptic_paths(root, split)
    for path in paths.values():
        if not Path(path).exists():
            raise InputError(
                f"{path} is missing; prepare ADE20K with `{PREPARE} {root}` (`--check` shows what it needs)"
            )
    classes = {
        category["id"]: bool(category["isthing"]) for category in read_categories(paths["panoptic_json"])
    }
    if classes != {category["id"]: bool(category["isthing"]) for category in ade20k_categories()}:
        raise InputError(
            f"{paths['panoptic_json']}: its categories are not ADE20K's 0..149 with 100 things; "
            f"make it again with `{PREPARE} {root}`"
        )
    records = load_coco_panoptic(paths["image_root"], paths["panoptic_json"], paths["panoptic_root"])
    semantic = root / "annotations_detectron2" / SPLIT_FOLDERS[split]
    if not semantic.is_dir():
        logger.warning("%s is missing: semantic labels will be derived from the panoptic ones", semantic)
        return records
    for record in records:
        record["sem_seg_file_name"] = str(semantic / f"{Path(record['pan_seg_file_name']).stem}.png")
    return records


def register_ade20k() -> None:
    """Register both splits under the current $DETECTRON2_DATASETS; needs no data on disk."""
    root = datasets_root() / FOLDER
    for split in SPLIT_FOLDERS:
        name = f"ade20k_panoptic_{split}"
        if name not in DatasetCatalog.list():
            DatasetCatalog.register(name, partial(load_ade20k_panoptic, root, split))
            MetadataCatalog.get(name).set(
                **panoptic_paths(root, split),
                **panoptic_metadata(ade20k_categories()),
                evaluator_type="ade20k_panoptic_seg",
            )
