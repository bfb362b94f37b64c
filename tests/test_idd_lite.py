"""IDD-Lite: records of its layout, what is missing is named, and the real labels have the classes."""

from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from PIL import Image

import mask_former.data  # noqa: F401  (registers it)
from mask_former.data.catalog import dataset_metadata, thing_ids
from mask_former.data.idd_lite import CLASSES, load_idd_lite
from mask_former.data.segments import read_semantic_segments
from mask_former.errors import InputError
from tests.real_data import real_data


def write(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.array([[0, 6], [255, 3]], np.uint8)).save(path)


def test_a_record_for_each_label(tmp_path):
    write(tmp_path, "leftImg8bit/val/2/b_image.jpg", "gtFine/val/2/b_label.png")
    write(tmp_path, "leftImg8bit/val/1/c_image.jpg", "gtFine/val/1/c_label.png")
    first, second = load_idd_lite(tmp_path, "val")
    assert (first["image_id"], second["image_id"]) == ("1/c", "2/b")
    assert second["file_name"] == str(tmp_path / "leftImg8bit/val/2/b_image.jpg")
    segments = read_semantic_segments(second, len(CLASSES), 255)
    assert segments.class_map(void=-1).tolist() == [[0, 6], [-1, 3]]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(InputError, match=r"gtFine/train: holds no \*/\*_label.png"):
        load_idd_lite(tmp_path, "train")
    write(tmp_path, "gtFine/train/7/x_label.png")
    with pytest.raises(InputError, match=r"its image .*leftImg8bit/train/7/x_image.jpg is missing"):
        load_idd_lite(tmp_path, "train")


def test_it_is_registered_without_being_there():
    assert {"idd_lite_train", "idd_lite_val"} <= set(DatasetCatalog.list())
    metadata = dataset_metadata("idd_lite_val")
    assert len(metadata.stuff_classes) == len(set(metadata.stuff_classes)) == 7
    assert thing_ids(metadata) == [] and metadata.ignore_label == 255


def test_the_real_labels():
    """Sky is at the top, the drivable surface at the bottom, and nothing but the seven classes and void."""
    root = real_data("idd20k_lite")
    train, val = (load_idd_lite(root, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (1403, 204)
    heights: dict[int, list[float]] = {}
    for record in val[::10]:
        labels = read_semantic_segments(record, len(CLASSES), 255).class_map(void=-1)
        for value in np.unique(labels):
            heights.setdefault(int(value), []).append(np.nonzero(labels == value)[0].mean() / labels.shape[0])
    mean = {CLASSES[value]: np.mean(rows) for value, rows in heights.items() if value >= 0}
    assert set(mean) == set(CLASSES)
    assert max(mean, key=mean.__getitem__) == "drivable" and min(mean, key=mean.__getitem__) == "sky"
