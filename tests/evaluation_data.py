"""A data set of two tiny scenes on disk with panoptic and semantic labels, and predictions for it.

Classes 0 sky, 1 road (stuff), 2 cat, 3 dog (things); their dataset ids are 10, 20, 30, 40. Scenes are 6×10.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata
from detectron2.structures import Boxes, Instances
from PIL import Image

from mask_former.data.catalog import panoptic_metadata
from mask_former.data.id_map import write_id_map
from mask_former.evaluation import GroundTruth

SKY, ROAD, CAT, DOG = range(4)
THINGS = {CAT, DOG}
HEIGHT, WIDTH = 6, 10
CATEGORIES = [
    {"id": 10 * (index + 1), "name": name, "isthing": int(index in THINGS)}
    for index, name in enumerate(("sky", "road", "cat", "dog"))
]


def scene(*regions: tuple[int, int, int, int, int]) -> np.ndarray:
    """H×W id map with (id, top, left, bottom, right) painted in order on void."""
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    for value, top, left, bottom, right in regions:
        ids[top:bottom, left:right] = value
    return ids


def segments(**class_of_id: int) -> list[dict[str, Any]]:
    """Segments from `_ID=class`."""
    return [
        {"id": int(key[1:]), "category_id": value, "iscrowd": 0, "isthing": value in THINGS}
        for key, value in class_of_id.items()
    ]


# sky over road, a cat and a crowd of dogs on the road; then a dog alone under the sky, the rest void
SCENES = (
    (
        scene((100, 0, 0, 3, 10), (200, 3, 0, 6, 10), (301, 4, 0, 6, 4), (70000, 4, 6, 6, 10)),
        [*segments(_100=SKY, _200=ROAD, _301=CAT), *({**s, "iscrowd": 1} for s in segments(_70000=DOG))],
    ),
    (scene((5, 0, 0, 3, 10), (9, 2, 2, 5, 7)), segments(_5=SKY, _9=DOG)),
)


def write_dataset(folder: Path) -> list[dict[str, Any]]:
    """Write the scenes' panoptic and semantic labels; the records carry the paths of both."""
    records = []
    for index, (ids, infos) in enumerate(SCENES):
        panoptic, semantic = folder / f"{index}_panoptic.png", folder / f"{index}_semantic.png"
        write_id_map(panoptic, ids)
        classes = np.full(ids.shape, 255, np.uint8)
        for info in infos:
            if not info["iscrowd"]:
                classes[ids == info["id"]] = info["category_id"]
        Image.fromarray(classes).save(semantic)
        records.append(
            {
                "file_name": str(folder / f"side_{index}" / "photo.jpg"),
                "image_id": f"scene {index}",
                "height": HEIGHT,
                "width": WIDTH,
                "pan_seg_file_name": str(panoptic),
                "sem_seg_file_name": str(semantic),
                "segments_info": infos,
            }
        )
    return records


def ground_truth(folder: Path, without: str = "") -> GroundTruth:
    """Ground truth of the written data set; `without`: a key to leave out of the records."""
    records = [{k: v for k, v in record.items() if k != without} for record in write_dataset(folder)]
    return GroundTruth("tiny", records, metadata())


def metadata() -> Metadata:
    return Metadata(**panoptic_metadata(CATEGORIES))


def register(name: str, records: list[dict[str, Any]]) -> None:
    """Make it a data set of detectron2's catalogs; `unregister` when done."""
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**panoptic_metadata(CATEGORIES))


def unregister(name: str) -> None:
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def panoptic_output(ids: np.ndarray, infos: list[dict[str, Any]]) -> dict[str, Any]:
    """A model's output with this id map."""
    return {"panoptic_seg": (torch.from_numpy(ids), [dict(info) for info in infos])}


def instance_output(*found: tuple[np.ndarray, int, float]) -> dict[str, Any]:
    """A model's output with these (mask, class, score)."""
    instances = Instances((HEIGHT, WIDTH))
    masks = np.stack([mask for mask, _, _ in found]) if found else np.zeros((0, HEIGHT, WIDTH), bool)
    instances.pred_masks = torch.from_numpy(masks)
    instances.pred_classes = torch.tensor([category for _, category, _ in found], dtype=torch.int64)
    instances.scores = torch.tensor([score for _, _, score in found])
    instances.pred_boxes = Boxes(torch.zeros(len(found), 4))
    return {"instances": instances}


def class_scores(classes: np.ndarray) -> torch.Tensor:
    """C×H×W scores whose argmax is the class map."""
    return torch.nn.functional.one_hot(torch.from_numpy(classes).long(), 4).permute(2, 0, 1).float()
