from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data import panoptic_json
from mask_former.data.catalog import (
    dataset_ids,
    dataset_metadata,
    dataset_records,
    first_metadata,
    panoptic_metadata,
    require_same_classes,
    thing_ids,
)
from mask_former.data.coco_panoptic import (
    load_coco_panoptic,
    register_coco_panoptic,
    register_from_config,
)
from mask_former.data.panoptic_json import read_categories
from mask_former.errors import InputError
from tests import tiny_panoptic
from tests.real_data import real_data


@pytest.fixture
def name():
    """A data set name that is free again after the test."""
    yield "tiny"
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("tiny", None)


def config(**paths: str) -> CfgNode:
    return CfgNode({"DATASETS": {"COCO_PANOPTIC": {"tiny": paths}}})


def test_registered_by_configuration_relative_to_the_data_root(tmp_path, monkeypatch, name):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    images, _, _ = tiny_panoptic.write(tmp_path / "tiny")
    cfg = config(IMAGES=str(images), JSON="tiny/panoptic.json", PNGS="tiny/pngs")  # absolute works too
    register_from_config(cfg)
    register_from_config(cfg)  # nothing happens
    metadata = dataset_metadata(name)
    assert metadata.stuff_classes == ["sky", "cat", "road"]
    assert thing_ids(metadata) == [1]
    assert dataset_ids(metadata) == {0: 2, 1: 5, 2: 11}
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.panoptic_json == str(tmp_path / "tiny" / "panoptic.json")
    assert len(dataset_records(name)) == 2


def test_records_counted_by_hand(tmp_path):
    images, json_file, pngs = tiny_panoptic.write(tmp_path)
    first, second = load_coco_panoptic(images, json_file, pngs)
    assert first == {
        "file_name": str(images / "a.png"),
        "image_id": 7,
        "height": 4,
        "width": 6,
        "pan_seg_file_name": str(pngs / "a_label.png"),
        "segments_info": [
            {"id": 10, "category_id": 0, "iscrowd": 0, "isthing": False, "area": 8, "bbox": [0, 0, 6, 3]},
            {"id": 70000, "category_id": 1, "iscrowd": 0, "isthing": True, "area": 4, "bbox": [1, 1, 2, 2]},
            {"id": 3, "category_id": 1, "iscrowd": 0, "isthing": True, "area": 3, "bbox": [3, 1, 2, 2]},
            {"id": 9, "category_id": 1, "iscrowd": 1, "isthing": True, "area": 4, "bbox": [4, 2, 2, 2]},
        ],
    }
    assert second["segments_info"] == [] and second["image_id"] == 8


def test_another_set_under_the_same_name_is_refused(tmp_path, name):
    register_coco_panoptic(name, *tiny_panoptic.write(tmp_path / "one"))
    with pytest.raises(InputError, match="'tiny' is already registered.*choose another name"):
        register_coco_panoptic(name, *tiny_panoptic.write(tmp_path / "two"))
    with pytest.raises(InputError, match="'coco_2017_val' is already registered"):
        register_coco_panoptic("coco_2017_val", *tiny_panoptic.write(tmp_path / "three"))


@pytest.mark.parametrize(
    "paths",
    [
        {"IMAGES": "a", "JSON": "b"},
        {"IMAGES": "a", "JSON": "b", "PNGS": ""},
        {"IMAGES": "a", "JSON": "b", "PNGS": "c", "EXTRA": "d"},
    ],
)
def test_configuration_must_have_the_three_paths(paths):
    with pytest.raises(InputError, match="COCO_PANOPTIC.tiny: must give paths for IMAGES, JSON, PNGS"):
        register_from_config(config(**paths))


def test_a_missing_or_broken_json_is_found_when_it_is_used_and_once_mended_it_works(tmp_path, name):
    images, json_file, pngs = tiny_panoptic.write(tmp_path)
    whole = json_file.read_text()
    json_file.unlink()
    register_coco_panoptic(name, images, json_file, pngs)
    for use in (dataset_metadata, dataset_records):
        with pytest.raises(InputError, match="panoptic.json: no such file"):
            use(name)
    json_file.write_text(whole[:-9])
    with pytest.raises(InputError, match="panoptic.json: is not JSON"):
        dataset_metadata(name)
    json_file.write_text(whole)
    assert dataset_metadata(name).stuff_classes == ["sky", "cat", "road"]


def test_a_machine_without_the_training_json_takes_the_classes_of_the_test_set(tmp_path, name, caplog):
    images, json_file, pngs = tiny_panoptic.write(tmp_path)
    paths = {"IMAGES": str(images), "PNGS": str(pngs)}
    sets = {"tiny_gone": {**paths, "JSON": "gone.json"}, "tiny": {**paths, "JSON": str(json_file)}}
    try:
        register_from_config(CfgNode({"DATASETS": {"COCO_PANOPTIC": sets}}))
        assert first_metadata(["tiny_gone", "tiny"]).name == "tiny"
        assert "not compared" not in caplog.text
        assert require_same_classes(["tiny_gone", "tiny"]).stuff_classes == ["sky", "cat", "road"]
        assert "tiny_gone is not here: its classes are not compared with the others'" in caplog.text
        for look_up in (first_metadata, require_same_classes):
            with pytest.raises(InputError, match="gone.json: no such file"):
                look_up(["tiny_gone"])
    finally:
        for catalog in (DatasetCatalog, MetadataCatalog):
            catalog.pop("tiny_gone", None)


def test_missing_folders_are_named(tmp_path):
    images, json_file, pngs = tiny_panoptic.write(tmp_path)
    with pytest.raises(InputError, match="gone: no such folder of images"):
        load_coco_panoptic(tmp_path / "gone", json_file, pngs)
    with pytest.raises(InputError, match="gone: no such folder of panoptic PNGs"):
        load_coco_panoptic(images, json_file, tmp_path / "gone")


def test_what_is_not_json_is_refused(tmp_path):
    images, json_file, pngs = tiny_panoptic.write(tmp_path)
    json_file.write_text('{"images": [')
    with pytest.raises(InputError, match="is not JSON"):
        load_coco_panoptic(images, json_file, pngs)


def break_json(change) -> dict:
    content = tiny_panoptic.content()
    change(content)
    return content


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("annotations"), "has no 'annotations'"),
        (lambda c: c.update(images={}), "'images' must be a list"),
        (lambda c: c.update(annotations=[]), "lists no annotation at all"),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            r"annotations\[0\] is for image 99, which is not listed",
        ),
        (
            lambda c: c["annotations"][1].update(image_id=7),
            r"annotations\[1\] is a second annotation of image 7",
        ),
        (lambda c: c["annotations"][0].pop("file_name"), r"annotations\[0\] has no 'file_name'"),
        (lambda c: c["images"][1].pop("width"), r"images\[1\] has no 'width'"),
        (lambda c: c["images"][1].update(id=7), "two entries of 'images' have the same id"),
        (lambda c: c["categories"][2].pop("isthing"), r"categories\[2\] has no 'isthing'"),
        (lambda c: c["categories"][2].update(id=5), "integer id of its own"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(category_id=4),
            "segment 10 has category 4",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].pop("id"), r"segments_info\[0\] has no 'id'"),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=3),
            "the id 3 stands twice in its image",
        ),
        (
            lambda c: c["annotations"][0]["segments_info"][0].update(id=0),
            "id is 0, but must be an integer of 1",
        ),
        (lambda c: c["annotations"][0]["segments_info"][0].update(id=2**24), "id is 16777216, but must be"),
    ],
)
def test_what_is_wrong_with_the_json_is_one_line(tmp_path, change, words):
    paths = tiny_panoptic.write(tmp_path, break_json(change))
    with pytest.raises(InputError, match=words) as caught:
        load_coco_panoptic(*paths)
    assert str(caught.value).startswith(f"{paths[1]}") and "\n" not in str(caught.value)


def test_images_without_annotation_are_left_out_aloud(tmp_path, caplog):
    paths = tiny_panoptic.write(tmp_path, break_json(lambda c: c["annotations"].pop()))
    assert [record["image_id"] for record in load_coco_panoptic(*paths)] == [7]
    assert "1 listed images have no annotation" in caplog.text


def test_categories_are_read_once_until_the_file_changes(tmp_path, monkeypatch):
    _, json_file, _ = tiny_panoptic.write(tmp_path)
    reads = []
    original = panoptic_json.read_panoptic_json
    monkeypatch.setattr(
        panoptic_json, "read_panoptic_json", lambda path: reads.append(path) or original(path)
    )
    assert read_categories(json_file) == read_categories(json_file) == tiny_panoptic.CATEGORIES
    assert len(reads) == 1
    json_file.write_text(json_file.read_text().replace('"cat"', '"tiger"'))
    assert read_categories(json_file)[0]["name"] == "tiger"


def test_real_coco_agrees_with_detectron2s_numbering():
    root = real_data("coco")
    json_file = root / "annotations" / "panoptic_val2017.json"
    records = load_coco_panoptic(root / "val2017", json_file, root / "annotations" / "panoptic_val2017")
    assert len(records) == 100
    assert all(Path(record["file_name"]).is_file() for record in records)
    builtin = dataset_metadata("coco_2017_val_panoptic")
    ours = panoptic_metadata(read_categories(json_file))
    assert ours["stuff_classes"] == builtin.stuff_classes
    assert ours["thing_dataset_id_to_contiguous_id"] == builtin.thing_dataset_id_to_contiguous_id
    assert ours["stuff_dataset_id_to_contiguous_id"] == builtin.stuff_dataset_id_to_contiguous_id
