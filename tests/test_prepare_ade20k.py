import json
import os

import numpy as np
import pytest
from PIL import Image

from mask_former.data.ade20k import load_ade20k_panoptic
from mask_former.data.id_map import read_class_map, read_id_map
from mask_former.errors import InputError, run_cli
from tests.real_data import real_data
from tools import prepare_ade20k

WALL, PERSON, CAR = 0, 12, 20
SCENE = np.array([[1, 1, 1, 1, 0], [13, 13, 21, 21, 0], [13, 13, 21, 3, 3]], np.uint8)
# (category, instance): persons are 4, cars 9; one car pixel has no instance; person 2 hides all of class 3
INSTANCE = [
    [(0, 0), (9, 1), (0, 0), (0, 0), (0, 0)],
    [(4, 1), (4, 1), (9, 1), (0, 0), (0, 0)],
    [(4, 1), (4, 1), (9, 1), (4, 2), (4, 2)],
]
IDS = np.array([[1, 277, 1, 1, 0], [269, 269, 277, 0, 0], [269, 269, 277, 525, 525]])


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """Two training images with instances, one validation image without."""
    folder = tmp_path / "ADEChallengeData2016"
    instance = np.array([[(*pixel, 0) for pixel in row] for row in INSTANCE])
    for name, split, scene in (
        ("a", "training", SCENE),
        ("b", "training", SCENE * 0),
        ("c", "validation", SCENE),
    ):
        save(folder / "images" / split / f"{name}.jpg", np.zeros((3, 5, 3)))
        save(folder / "annotations" / split / f"{name}.png", scene)
        if split == "training":
            save(folder / "annotations_instance" / split / f"{name}.png", instance * (name == "a"))
    return folder


def run(*arguments) -> int:
    return prepare_ade20k.main([*map(str, arguments), "--workers", "1"])


def tree(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_labels_by_hand(root, caplog):
    assert run(root) == 0
    np.testing.assert_array_equal(read_id_map(root / "ade20k_panoptic_train/a.png"), IDS)
    np.testing.assert_array_equal(
        read_class_map(root / "annotations_detectron2/training/a.png"),
        [[0, 0, 0, 0, 255], [12, 12, 20, 20, 255], [12, 12, 20, 2, 2]],
    )
    content = json.loads((root / "ade20k_panoptic_train.json").read_text())
    assert content["images"][0] == {"id": "a", "file_name": "a.jpg", "height": 3, "width": 5}
    assert content["annotations"][0] == {
        "image_id": "a",
        "file_name": "a.png",
        "segments_info": [
            # the wall lost a pixel to the car; class 2, hidden by person 2, is not listed
            {"id": 1, "category_id": WALL, "iscrowd": 0, "area": 3, "bbox": [0, 0, 4, 1]},
            {"id": 269, "category_id": PERSON, "iscrowd": 0, "area": 4, "bbox": [0, 1, 2, 2]},
            {"id": 277, "category_id": CAR, "iscrowd": 0, "area": 3, "bbox": [1, 0, 2, 3]},
            {"id": 525, "category_id": PERSON, "iscrowd": 0, "area": 2, "bbox": [3, 2, 2, 1]},
        ],
    }
    assert content["annotations"][1]["segments_info"] == []  # an image of nothing but void is kept
    assert len(content["categories"]) == 150 and sum(c["isthing"] for c in content["categories"]) == 100
    assert set(content["categories"][0]) == {"id", "name", "isthing", "color"}
    assert "train: 2 images, while the whole data set has 20210" in caplog.text


def test_what_is_made_can_be_loaded(root):
    run(root)
    records = load_ade20k_panoptic(root, "train")
    assert [record["image_id"] for record in records] == ["a", "b"]
    assert all(os.path.isfile(record["sem_seg_file_name"]) for record in records)


def test_a_split_without_instances_gets_semantic_labels_and_a_warning(root, caplog):
    assert run(root, "--splits", "val") == 0
    assert (root / "annotations_detectron2/validation/c.png").is_file()
    assert not (root / "ade20k_panoptic_val.json").exists() and not (root / "ade20k_panoptic_val").exists()
    assert f"no panoptic labels for this split, only semantic ones, because {root}" in caplog.text
    with pytest.raises(InputError, match="ade20k_panoptic_val.* is missing"):
        load_ade20k_panoptic(root, "val")


def test_a_second_run_and_more_processes_write_the_same(root):
    run(root)
    first = tree(root)
    assert prepare_ade20k.main([str(root), "--workers", "3"]) == 0
    assert tree(root) == first
    assert not [name for name in first if "/." in name or name.startswith(".")]  # no temporary files


def test_another_output_leaves_the_source_alone_and_links_its_images(root, tmp_path):
    before, output = tree(root), tmp_path / "made" / "ADEChallengeData2016"
    assert run(root, "--output", output) == run(root, "--output", output) == 0
    assert tree(root) == before
    assert (output / "images").resolve() == (root / "images").resolve()
    assert len(load_ade20k_panoptic(output, "train")) == 2


def test_an_output_with_other_images_is_refused(root, tmp_path):
    (tmp_path / "other" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="holds other images than"):
        run(root, "--output", tmp_path / "other")


def test_a_folder_marked_read_only_is_not_written_even_by_the_superuser(root):
    before = tree(root)
    root.chmod(0o555)
    try:
        with pytest.raises(InputError, match="is marked read-only; name another folder by --output"):
            run(root)
    finally:
        root.chmod(0o755)
    assert tree(root) == before


def test_an_old_json_does_not_outlive_a_run_that_failed(root):
    run(root)
    save(root / "annotations_instance/training/b.png", np.full((3, 5, 3), 101))
    with pytest.raises(InputError, match=r"b\.png: instance category 101"):
        run(root)
    assert not (root / "ade20k_panoptic_train.json").exists()


def test_a_missing_label_is_named(root):
    (root / "annotations_instance/training/b.png").unlink()
    with pytest.raises(
        InputError, match=r"annotations_instance/training/b\.png: missing, as for 1 of 2 images"
    ):
        run(root)


def test_sizes_that_disagree_are_refused(root):
    save(root / "annotations/training/a.png", SCENE.T)
    with pytest.raises(
        InputError, match=r"annotations/training/a\.png: size \(5, 3\) is not its image's \(3, 5\)"
    ):
        run(root)


def test_nothing_to_prepare_is_a_failure(tmp_path, caplog):
    assert run(tmp_path) == 1
    assert "images/training is missing" in caplog.text and "nothing was prepared" in caplog.text
    (tmp_path / "images" / "training").mkdir(parents=True)
    (tmp_path / "annotations" / "training").mkdir(parents=True)
    assert run_cli(lambda: run(tmp_path)) == 2  # no image in it


def test_check_counts_names_what_is_missing_and_writes_nothing(root, capsys, monkeypatch):
    before = tree(root)
    assert run(root, "--check") == 1
    shown = capsys.readouterr().out
    assert f"partly       2 of 20210  {root}/images/training" in shown
    assert f"missing      0 of  2000  {root}/annotations_instance/validation" in shown
    assert f"not yet                  {root}/ade20k_panoptic_train.json" in shown
    assert "sceneparsing.csail.mit.edu" in shown
    assert tree(root) == before

    monkeypatch.setattr(prepare_ade20k, "IMAGE_COUNTS", {"train": 2, "val": 1})
    run(root, "--splits", "train")
    capsys.readouterr()
    assert run(root, "--check", "--splits", "train") == 0
    shown = capsys.readouterr().out
    assert "not yet" not in shown and "sceneparsing" not in shown


def test_the_real_sample(tmp_path):
    source = real_data("ade20k_sample", "ADEChallengeData2016")
    assert run(source, "--output", tmp_path / "made") == 0
    records = load_ade20k_panoptic(tmp_path / "made", "train")
    things = [segment for record in records for segment in record["segments_info"] if segment["isthing"]]
    assert len(records) == 3 and len(things) == 66
    for record in records:
        scene = read_class_map(source / "annotations" / "training" / f"{record['image_id']}.png")
        ids = read_id_map(record["pan_seg_file_name"])
        for segment in record["segments_info"]:
            mask = ids == segment["id"]
            assert mask.sum() == segment["area"] > 0
            assert (scene[mask] == segment["category_id"] + 1).all()  # here the two annotations agree
        assert set(np.unique(ids)) - {0} == {segment["id"] for segment in record["segments_info"]}
