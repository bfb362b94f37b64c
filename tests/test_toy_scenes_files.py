"""The toy scenes as files: COCO's layout, the same bytes however they are made, and no folder half done."""

import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core
from PIL import Image

from mask_former.config import load_config
from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.toy_scenes import COARSE, FINE, render_scene, write_toy_scenes
from mask_former.errors import InputError, run_cli
from tests.real_data import REPOSITORY
from tools.render_toy_scenes import main, parse_arguments

IDS = COARSE.ids
NAMES = {category_id: name for name, category_id in IDS.items()}


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("data") / "toy"
    assert write_toy_scenes(output, num_train=12, num_val=4, size=64, seed=2, workers=1)
    return output


def test_files_hold_the_scenes(written):
    for split, count in (("train", 12), ("val", 4)):
        content = json.loads((written / "annotations" / f"panoptic_{split}.json").read_text())
        assert content["categories"] == COARSE.categories
        assert len(content["images"]) == len(content["annotations"]) == count
        for index, (image, annotation) in enumerate(
            zip(content["images"], content["annotations"], strict=True)
        ):
            scene = render_scene(2, split, index, 64)
            assert annotation["image_id"] == image["id"]
            assert (image["width"], image["height"]) == (64, 64)
            stored = np.array(Image.open(written / split / image["file_name"])).astype(float)
            assert stored.shape == scene.image.shape and abs(stored - scene.image).mean() < 4  # JPEG
            png = Image.open(written / "annotations" / f"panoptic_{split}" / annotation["file_name"])
            assert png.mode == "RGB"
            np.testing.assert_array_equal(np.array(png) @ [1, 256, 65536], scene.ids)
            assert annotation["segments_info"] == [segment.to_coco() for segment in scene.segments]


def test_panopticapi_and_the_project_read_them(written):
    annotations = json.loads((written / "annotations" / "panoptic_train.json").read_text())
    folder = str(written / "annotations" / "panoptic_train")
    pairs = [(annotation, annotation) for annotation in annotations["annotations"]]
    result = pq_compute_single_core(
        0, pairs, folder, folder, {category["id"]: category for category in COARSE.categories}
    )
    assert result.pq_average({c["id"]: c for c in COARSE.categories}, isthing=None)[0]["pq"] == 1
    records = load_coco_panoptic(written / "train", written / "annotations" / "panoptic_train.json", folder)
    assert {s["category_id"] for record in records for s in record["segments_info"]} == set(range(12))


def test_ambiguous_things_are_listed(written):
    content = json.loads((written / "annotations" / "ambiguous_train.json").read_text())
    assert [tuple(pair.values()) for pair in content["pairs"]] == list(COARSE.pairs)
    rivals = {"boat": "cart", "cart": "boat", "ball": "wheel", "wheel": "ball"}
    panoptic = json.loads((written / "annotations" / "panoptic_train.json").read_text())
    for listed, annotation in zip(content["annotations"], panoptic["annotations"], strict=True):
        assert listed["image_id"] == annotation["image_id"]
        expected = {
            segment["id"]: IDS[rivals[NAMES[segment["category_id"]]]]
            for segment in annotation["segments_info"]
            if NAMES[segment["category_id"]] in rivals
        }
        assert {thing["id"]: thing["mistaken_for"] for thing in listed["things"]} == expected
        for thing in listed["things"]:
            name = NAMES[thing["category_id"]]
            assert thing["why"] == ("surroundings" if name in ("boat", "cart") else "twin")
            assert (thing["twin"] in expected) == (name == "wheel")


def test_workers_and_counts_change_no_image(written, tmp_path):
    write_toy_scenes(tmp_path / "toy", num_train=5, num_val=6, size=64, seed=2, workers=2)
    for pattern, common in (
        ("train/*", 5),
        ("val/*", 4),
        ("annotations/*_train/*", 5),
        ("annotations/*_val/*", 4),
    ):
        here, there = sorted((tmp_path / "toy").glob(pattern)), sorted(written.glob(pattern))
        for one, other in zip(here[:common], there[:common], strict=True):
            assert one.name == other.name
            assert one.read_bytes() == other.read_bytes()


def test_the_same_again_does_nothing(written, caplog, capsys):
    before = {path: path.stat().st_mtime_ns for path in written.rglob("*")}
    command = [str(written), "--train=12", "--val=4", "--size=64", "--seed=2", "--workers=2"]
    with caplog.at_level(logging.INFO):
        assert run_cli(lambda: main(command)) == 0
    assert "nothing to do" in caplog.text
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before
    assert run_cli(lambda: main([*command, "--seed=3"])) == 2
    assert "rendered with" in (error := capsys.readouterr().err) and "choose another folder" in error
    assert {path: path.stat().st_mtime_ns for path in written.rglob("*")} == before


def test_rich_scenes_are_written_with_the_fine_vocabulary(tmp_path):
    write_toy_scenes(tmp_path / "toy", num_train=2, num_val=0, size=96, seed=2, genre="rich")
    folder = tmp_path / "toy" / "annotations"
    panoptic = json.loads((folder / "panoptic_train.json").read_text())
    ambiguous = json.loads((folder / "ambiguous_train.json").read_text())
    assert panoptic["categories"] == FINE.categories
    assert [tuple(pair.values()) for pair in ambiguous["pairs"]] == list(FINE.pairs)
    for index, listed in enumerate(ambiguous["annotations"]):
        scene = render_scene(2, "train", index, 96, "rich")
        expected = [segment.id for segment in scene.segments if segment.why is not None]
        assert [thing["id"] for thing in listed["things"]] == expected
        png = Image.open(folder / "panoptic_train" / panoptic["annotations"][index]["file_name"])
        np.testing.assert_array_equal(np.array(png) @ [1, 256, 65536], scene.ids)


@pytest.mark.parametrize(
    ("genre", "older", "other"),
    [
        ("marked", {}, "plain"),
        ("marked", {"discs": "marked"}, "plain"),
        ("plain", {"discs": "plain"}, "marked"),
    ],
)
def test_an_older_folder_that_calls_its_genre_otherwise_is_known(tmp_path, genre, older, other):
    usual = {"output": tmp_path / "toy", "num_train": 2, "num_val": 1, "size": 64, "seed": 0}
    write_toy_scenes(**usual, genre=genre)
    receipt = tmp_path / "toy" / "toy_scenes.json"
    said = json.loads(receipt.read_text())
    assert said.pop("genre") == genre
    receipt.write_text(json.dumps(said | older))
    assert not write_toy_scenes(**usual, genre=genre)
    with pytest.raises(InputError, match=f"rendered with .*'{genre}'.* not .*'{other}'"):
        write_toy_scenes(**usual, genre=other)


def test_foreign_and_damaged_folders_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="not written by this tool"):
        write_toy_scenes(tmp_path / "mine", num_train=1, num_val=1, size=64, seed=0)
    write_toy_scenes(tmp_path / "toy", num_train=2, num_val=1, size=64, seed=0)
    next((tmp_path / "toy" / "train").iterdir()).unlink()
    with pytest.raises(InputError, match="holds 1 files instead of 2"):
        write_toy_scenes(tmp_path / "toy", num_train=2, num_val=1, size=64, seed=0)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_toy_scenes(tmp_path / "toy", num_train=3, num_val=1, size=64, seed=0, on_image=interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [{"num_train": -1}, {"num_val": 10**7}, {"size": 32}, {"seed": -1}, {"workers": 0}, {"genre": "round"}],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments):
    usual = {"num_train": 1, "num_val": 1, "size": 64, "seed": 0, "workers": 1}
    with pytest.raises(InputError, match="toy scenes: .*use"):
        write_toy_scenes(tmp_path / "toy", **(usual | arguments))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("file", ["docs/toy_scenes.md", "configs/toy/maskformer_tiny.yaml"])
def test_the_command_that_is_told_renders_what_the_toy_configuration_reads(file):
    """The tool's defaults, at the size and in the folder of configs/toy."""
    command = re.search(r"python tools/render_toy_scenes\.py ([^#\n]+)", (REPOSITORY / file).read_text())
    told = parse_arguments(command[1].split())
    assert told == parse_arguments(["datasets/toy"])
    cfg = load_config(REPOSITORY / "configs/toy/maskformer_tiny.yaml")
    assert (told.size,) == tuple(cfg.INPUT.MIN_SIZE_TRAIN) and told.size == cfg.INPUT.MIN_SIZE_TEST
    images = [Path("datasets", paths.IMAGES) for paths in cfg.DATASETS.COCO_PANOPTIC.values()]
    assert images == [told.output / "train", told.output / "val"]
