"""A COCO-panoptic data set of two images small enough to count by hand.

Image 7 (4 rows × 6 columns), ids: 0 void, 10 sky (stuff), 70000 and 3 two cats, 9 a crowd of cats:
    10 10 10 10 10 10
    10 70000 70000 3 3 0
    10 70000 70000 3 9 9
    0  0     0     0 9 9
Image 8 (2 × 3) has no segment at all. Categories: 5 cat (thing), 2 sky, 11 road (stuff): contiguous 1, 0, 2.
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mask_former.data.id_map import write_id_map

IDS = np.array(
    [
        [10, 10, 10, 10, 10, 10],
        [10, 70000, 70000, 3, 3, 0],
        [10, 70000, 70000, 3, 9, 9],
        [0, 0, 0, 0, 9, 9],
    ]
)
CATEGORIES = [
    {"id": 5, "name": "cat", "isthing": 1},
    {"id": 2, "name": "sky", "isthing": 0},
    {"id": 11, "name": "road", "isthing": 0},
]
SEGMENTS = [
    {"id": 10, "category_id": 2, "iscrowd": 0, "area": 8, "bbox": [0, 0, 6, 3]},
    {"id": 70000, "category_id": 5, "iscrowd": 0, "area": 4, "bbox": [1, 1, 2, 2]},
    {"id": 3, "category_id": 5, "iscrowd": 0, "area": 3, "bbox": [3, 1, 2, 2]},
    {"id": 9, "category_id": 5, "iscrowd": 1, "area": 4, "bbox": [4, 2, 2, 2]},
]


def content() -> dict[str, list[dict[str, Any]]]:
    """The JSON, free to be changed by a test before it is written."""
    return {
        "images": [
            {"id": 7, "file_name": "a.png", "height": 4, "width": 6},
            {"id": 8, "file_name": "b.png", "height": 2, "width": 3},
        ],
        "annotations": [
            {"image_id": 7, "file_name": "a_label.png", "segments_info": [dict(entry) for entry in SEGMENTS]},
            {"image_id": 8, "file_name": "b_label.png", "segments_info": []},
        ],
        "categories": [dict(category) for category in CATEGORIES],
    }


def write(root: Path, json_content: Any = None) -> tuple[Path, Path, Path]:
    """Write the data set under `root`; returns its image folder, JSON file and PNG folder."""
    images, pngs, json_file = root / "images", root / "pngs", root / "panoptic.json"
    images.mkdir(parents=True, exist_ok=True)
    pngs.mkdir(exist_ok=True)
    for name, ids in (("a", IDS), ("b", np.zeros((2, 3), int))):
        pixels = np.arange(ids.size * 3, dtype=np.uint8).reshape(*ids.shape, 3)
        cv2.imwrite(str(images / f"{name}.png"), pixels[..., ::-1])
        write_id_map(pngs / f"{name}_label.png", ids)
    json_file.write_text(json.dumps(content() if json_content is None else json_content))
    return images, json_file, pngs


def record(root: Path, **changes: Any) -> dict[str, Any]:
    """The record of image 7 written under `root`, with categories already contiguous."""
    contiguous = {5: 1, 2: 0, 11: 2}
    return {
        "file_name": str(root / "images" / "a.png"),
        "image_id": 7,
        "height": 4,
        "width": 6,
        "pan_seg_file_name": str(root / "pngs" / "a_label.png"),
        "segments_info": [{**entry, "category_id": contiguous[entry["category_id"]]} for entry in SEGMENTS],
        **changes,
    }
