import json

import numpy as np
import pytest

from mask_former.data.ade20k import (
    THING_CLASSES,
    ade20k_categories,
    category_of_id,
    load_ade20k_panoptic,
    panoptic_ids,
    semantic_label,
)
from mask_former.data.catalog import dataset_ids, dataset_metadata, thing_ids
from mask_former.data.id_map import write_id_map, write_png
from mask_former.errors import InputError
from tests.real_data import real_data

WALL, PERSON, CAR = 0, 12, 20
PERSON_INSTANCE, CAR_INSTANCE = 4, 9  # their instance categories
PERSON_ID, CAR_ID, WALL_ID = PERSON + 1, CAR + 1, WALL + 1


def test_metadata_needs_no_data_on_disk():
    metadata = dataset_metadata("ade20k_panoptic_val")
    assert len(metadata.stuff_classes) == 150
    assert thing_ids(metadata) == list(THING_CLASSES) and len(THING_CLASSES) == 100
    assert dataset_ids(metadata) == {index: index for index in range(150)}
    assert [metadata.stuff_classes[index] for index in (WALL, PERSON, CAR, 149)] == [
        "wall",
        "person",
        "car",
        "flag",
    ]
    assert metadata.evaluator_type == "ade20k_panoptic_seg"
    assert metadata.panoptic_json.endswith("ADEChallengeData2016/ade20k_panoptic_val.json")
    assert metadata.image_root.endswith("ADEChallengeData2016/images/validation")


def test_the_numbering_of_instances_is_the_challenges():
    rows = [
        line.split()
        for line in real_data("ade20k_sample", "categoryMapping.txt").read_text().splitlines()[1:]
    ]
    table = {int(row[0]): int(row[1]) - 1 for row in rows if row}
    assert table == dict(enumerate(THING_CLASSES, start=1))


def test_the_names_are_the_challenges():
    lines = (
        real_data("ade20k_sample", "ADEChallengeData2016", "objectInfo150.txt").read_text().splitlines()[1:]
    )
    synonyms = [[name.strip() for name in line.split("\t")[-1].split(",")] for line in lines]
    for category, names in zip(ade20k_categories(), synonyms, strict=True):
        short = category["name"].split(",")[0]  # "pool" for "swimming pool"
        assert any(short in name for name in names)


def test_instances_are_painted_over_stuff_and_the_rest_of_a_thing_is_void():
    scene = np.array([[WALL_ID, WALL_ID, WALL_ID, 0], [PERSON_ID, PERSON_ID, CAR_ID, CAR_ID]], np.uint8)
    instances = np.zeros((2, 4, 3), np.uint8)
    instances[1, 0] = (PERSON_INSTANCE, 1, 0)
    instances[1, 2] = (CAR_INSTANCE, 1, 0)  # the same instance id under another category is another instance
    instances[0, 2] = (CAR_INSTANCE, 3, 0)  # over the wall
    instances[0, 3] = (CAR_INSTANCE, 0, 0)  # a category without instance: none
    expected = [[1, 1, 21 + 256 * 3, 0], [13 + 256, 0, 21 + 256, 0]]
    np.testing.assert_array_equal(panoptic_ids(scene, instances), expected)
    assert [category_of_id(key) for key in (1, 21 + 256 * 3, 13 + 256)] == [WALL, CAR, PERSON]


def test_numbers_outside_the_tables_are_refused():
    scene, instances = np.full((1, 1), 151, np.uint8), np.zeros((1, 1, 3), np.uint8)
    with pytest.raises(InputError, match="scene class 151"):
        panoptic_ids(scene, instances)
    instances[..., 0] = 101
    with pytest.raises(InputError, match="instance category 101"):
        panoptic_ids(scene * 0, instances)


def test_semantic_label_is_shifted_and_void_is_255():
    np.testing.assert_array_equal(semantic_label(np.array([[0, 1, 150]], np.uint8)), [[255, 0, 149]])


def write_prepared(root, categories):
    """One prepared validation image, 1×2 pixels, as this or the official preparation lays it out."""
    for folder in ("images/validation", "ade20k_panoptic_val"):
        (root / folder).mkdir(parents=True)
    write_png(root / "images/validation/x.jpg", np.zeros((1, 2, 3), np.uint8))
    write_id_map(root / "ade20k_panoptic_val/x.png", np.array([[1, 0]]))
    segment = {"id": 1, "category_id": WALL, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}
    content = {
        "images": [{"id": "x", "file_name": "x.jpg", "height": 1, "width": 2}],
        "annotations": [{"image_id": "x", "file_name": "x.png", "segments_info": [segment]}],
        "categories": categories,
    }
    (root / "ade20k_panoptic_val.json").write_text(json.dumps(content))


def test_records_name_the_semantic_label_when_it_is_there(tmp_path, caplog):
    write_prepared(tmp_path, ade20k_categories())
    (record,) = load_ade20k_panoptic(tmp_path, "val")
    assert record["image_id"] == "x" and "sem_seg_file_name" not in record
    assert "annotations_detectron2/validation is missing" in caplog.text
    (tmp_path / "annotations_detectron2" / "validation").mkdir(parents=True)
    (record,) = load_ade20k_panoptic(tmp_path, "val")
    assert record["sem_seg_file_name"] == str(tmp_path / "annotations_detectron2/validation/x.png")
    assert record["segments_info"][0]["isthing"] is False


def test_a_missing_part_is_named_with_the_mend(tmp_path):
    with pytest.raises(InputError, match=r"images/validation is missing.*python tools/prepare_ade20k\.py"):
        load_ade20k_panoptic(tmp_path, "val")
    write_prepared(tmp_path, ade20k_categories())
    (tmp_path / "ade20k_panoptic_val.json").unlink()
    with pytest.raises(InputError, match=r"ade20k_panoptic_val\.json is missing"):
        load_ade20k_panoptic(tmp_path, "val")


def test_other_categories_than_ade20ks_are_refused(tmp_path):
    write_prepared(tmp_path, ade20k_categories()[:149])
    with pytest.raises(InputError, match="are not ADE20K's 0..149"):
        load_ade20k_panoptic(tmp_path, "val")
