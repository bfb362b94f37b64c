"""tools/visualize.py: the numbers in its files are the model's, and its refusals are one line."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.data.catalog import Metadata
from PIL import Image

from mask_former.data.catalog import panoptic_metadata
from mask_former.errors import run_cli
from mask_former.prediction import Predictor
from pisr_maskformer.hosts.maskformer import recorded_internals
from pisr_maskformer.visualization.observation import Observation, Stage
from tests.comparison_data import write_photo
from tests.toy_models import OPTS, PISR_CONFIG, toy_models, weights_of
from tests.toy_run import CONFIG
from tools.project import project_config
from tools.views import heatmaps
from tools.views.look import Look
from tools.visualize import HELP, main

CLASSES = 12
THRESHOLD = ("--threshold", "0.0")  # an untrained model is sure of nothing


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    with toy_models(tmp_path_factory.mktemp("toy")) as folder:
        write_photo(folder / "photos" / "landscape.png", 48, 64)
        yield folder


def run(toy, command, output, *more, config=PISR_CONFIG, given=None):
    arguments = [command, "--config-file", config, "--weights", weights_of(toy, config)]
    arguments += ["--input", given or toy / "photos", "--output", output, *more, "--opts", *OPTS]
    return main([str(a) for a in arguments])


def arrays(folder, command, name="landscape"):
    return dict(np.load(folder / f"{name}_{command}.npz"))


def internals(toy, photo="landscape.png"):
    """What the model computes, asked of it directly, without the padding of 64×85 pixels."""
    predictor = Predictor(project_config(PISR_CONFIG, OPTS), weights_of(toy, PISR_CONFIG))
    rgb = np.array(Image.open(toy / "photos" / photo))
    with torch.no_grad(), recorded_internals(predictor.model) as recorded:
        result = predictor(rgb)
    return recorded[0], result


def test_semantic_heatmaps_are_the_models(toy, tmp_path):
    assert run(toy, "semantic-heatmap", tmp_path, "--class", "road") == 0
    found = arrays(tmp_path, "semantic-heatmap")
    names = [
        "boat",
        "cart",
        "ball",
        "wheel",
        "tree",
        "house",
        "person",
        "sky",
        "wall",
        "grass",
        "water",
        "road",
    ]
    assert found["class"] == "road"
    inner = internals(toy)[0].semantic_heatmaps[0, names.index("road")].numpy()
    rows, columns = found["before"].shape
    np.testing.assert_allclose(found["before"], inner[:rows, :columns], atol=1e-5)
    assert np.abs(found["after"] - found["before"]).max() > 1e-4
    with Image.open(tmp_path / "landscape_semantic-heatmap.png") as picture:
        assert picture.width > 4 * 512 and picture.height > 384


def test_centres_lie_on_the_class_that_is_predicted(toy, tmp_path):
    assert run(toy, "centers", tmp_path, "--class", "boat") == 0
    found = arrays(tmp_path, "centers")
    assert found["class"] == "boat"
    assert found["centers_after"].shape == found["semantic_after"].shape
    assert found["centers_after"].min() >= 0 and found["centers_after"].max() <= 1


@pytest.mark.parametrize("baseline", [False, True])
def test_instance_heatmaps_come_in_pairs(toy, tmp_path, baseline):
    more = ["--baseline", CONFIG, weights_of(toy, CONFIG)] if baseline else []
    assert run(toy, "instance-heatmap", tmp_path, *more, *THRESHOLD, "--most", 3) == 0
    found = arrays(tmp_path, "instance-heatmap")
    count = len(found["names"])
    assert count <= 3 and found["with"].shape == found["without"].shape and len(found["with"]) == count
    assert (np.diff(found["scores"]) <= 0).all(), "best first"
    assert ((found["overlaps"] >= 0) & (found["overlaps"] <= 1 + 1e-6)).all()


def test_no_instance_is_said_so(toy, tmp_path):
    assert run(toy, "instance-heatmap", tmp_path, "--threshold", "1.0") == 0
    assert len(arrays(tmp_path, "instance-heatmap")["names"]) == 0
    assert (tmp_path / "landscape_instance-heatmap.png").is_file()


def test_weights_are_the_models(toy, tmp_path):
    assert run(toy, "weights", tmp_path, *THRESHOLD) == 0
    found = arrays(tmp_path, "weights")
    np.testing.assert_allclose(found["weights"], internals(toy)[0].weights[0].numpy(), atol=1e-6)
    assert len(found["names"]) == CLASSES


@pytest.mark.parametrize(("encoding", "row"), [("water", 10), ("Sky", 7), ("instance:2", CLASSES + 2)])
def test_relations_are_a_row_of_f_sp(toy, tmp_path, encoding, row):
    assert run(toy, "relations", tmp_path, "--encoding", encoding) == 0
    found = arrays(tmp_path, "relations")
    assert found["row"] == row
    spatial = internals(toy)[0].spatial_features[0, row].numpy()
    height, width = found["F_sp"].shape
    np.testing.assert_allclose(found["F_sp"], spatial[:height, :width], rtol=1e-4, atol=1e-5)


def test_encodings_of_all_images_in_one_plane_the_same_each_time(toy, tmp_path):
    scenes = toy / "data/toy/train"
    for name in ("a", "b"):
        assert run(toy, "encodings", tmp_path / name, "--threshold", "0.1", given=scenes) == 0
    first, again = (dict(np.load(tmp_path / name / "encodings.npz")) for name in ("a", "b"))
    assert np.array_equal(first["plane"], again["plane"])
    assert len(first["plane"]) == len(first["encodings"]) == len(first["kinds"]) == len(first["image"])
    assert set(first["image"].tolist()) <= set(range(4)) and len(first["files"]) == 4
    assert (tmp_path / "a/encodings.png").is_file()


def test_grey_and_portrait_images_and_names_of_all_kinds(toy, tmp_path):
    photos = tmp_path / "photos"
    write_photo(photos / 'it\'s "grey" <b>&.png', 40, 70, grey=True)
    write_photo(photos / "雪 portrait.jpg", 90, 30)
    for command in ("semantic-heatmap", "weights"):
        assert run(toy, command, tmp_path / "out", given=photos) == 0
    assert len(list((tmp_path / "out").glob("*.png"))) == len(list((tmp_path / "out").glob("*.npz"))) == 4
    assert (tmp_path / "out" / "雪 portrait_weights.png").is_file()


def test_a_baseline_has_heatmaps_too(toy, tmp_path):
    assert run(toy, "semantic-heatmap", tmp_path, config=CONFIG) == 0
    found = arrays(tmp_path, "semantic-heatmap")
    assert np.array_equal(found["before"], found["after"])


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("semantic-heatmap", ["--class", "rod"], "no class is called 'rod'; there are road"),
        ("relations", ["--encoding", "instance:99"], "is not among the encodings"),
        ("encodings", ["--threshold", "1.0"], "too few for t-SNE"),
    ],
)
def test_what_cannot_be_shown_is_one_line(toy, tmp_path, capfd, command, more, message):
    few = tmp_path / "few"
    write_photo(few / "a.png", 8, 8)
    code = run_cli(lambda: run(toy, command, tmp_path / "out", *more, given=few))
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert code in (1, 2) and message in errors[0]


def test_a_model_without_pisr_has_no_weights(toy, tmp_path, capfd):
    assert run(toy, "weights", tmp_path, config=CONFIG) == 1
    assert "the model has no PISR" in capfd.readouterr().err


def test_a_bad_picture_is_named_and_the_others_go_on(toy, tmp_path, capfd):
    photos = tmp_path / "photos"
    write_photo(photos / "good.png", 40, 40)
    (photos / "bad.jpg").write_bytes(b"no picture")
    assert run(toy, "semantic-heatmap", tmp_path / "out", given=photos) == 1
    errors = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
    assert errors[0].count("bad.jpg") == 1 and "1 of 2 pictures failed" in errors[1]
    assert [path.name for path in Path(tmp_path / "out").glob("*.png")] == ["good_semantic-heatmap.png"]


def test_a_model_that_diverged_is_a_line_a_picture(toy, tmp_path, capfd):
    state = torch.load(weights_of(toy, PISR_CONFIG))["model"]
    weights = tmp_path / "diverged.pth"
    torch.save({"model": {key: torch.full_like(value, torch.nan) for key, value in state.items()}}, weights)
    given = ["--config-file", PISR_CONFIG, "--weights", weights, "--input", toy / "photos"]
    for command in ("centers", "weights"):
        arguments = [command, *given, "--output", tmp_path / "out", "--opts", *OPTS]
        assert run_cli(lambda arguments=arguments: main([str(a) for a in arguments])) == 1
        first, last = [line for line in capfd.readouterr().err.splitlines() if "error:" in line]
        told = (
            f"landscape.png: the model {weights} gives values that are not finite; did its training diverge?"
        )
        assert first.endswith(told) and "1 of 1 pictures failed" in last


def test_a_centre_is_not_pulled_away_by_a_faint_tail_or_the_padding():
    masks = np.full((2, 20, 40), 0.05, np.float32)
    masks[0, 3:6, 4:7] = 0.95  # centre at (4, 5); the second query is sure of nothing
    masks[:, :, 32:] = 1  # the padding
    stage = Stage(np.array([[0.8, 0.1], [0.7, 0.1]], np.float32), masks)
    observation = Observation({}, stage, stage, {}, padded=(80, 160), resized=(80, 128), size=(80, 128))
    classes = Metadata(**panoptic_metadata([{"id": i, "name": n, "isthing": 1} for i, n in enumerate("ab")]))
    look = Look(np.zeros((80, 128, 3), np.uint8), observation, classes)
    titles = []

    def row(pictures, given):
        titles.append(given)
        return pictures[0]

    with (
        mock.patch.object(Look, "prediction", Look.picture),
        mock.patch("tools.views.heatmaps.panels.row", row),
    ):
        found = {name: heatmaps.centers(look, name).arrays["centers_after"] for name in "ab"}
    assert found["a"].shape == (20, 32)
    assert np.unravel_index(found["a"].argmax(), found["a"].shape) == (4, 5)
    np.testing.assert_allclose(found["a"].max(), 0.8, rtol=1e-4)
    assert found["a"][:, 12:].max() == 0, "no other centre"
    assert found["b"].max() == 0
    assert titles[0][-1] == "“a” and centres after PISR"
    assert titles[1][-1] == "“b” after PISR: no centre falls on it"


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("encodings", ["--seed", "-1"], "--seed must be from 0 to 4294967295"),
        ("encodings", ["--seed", str(2**32)], "--seed must be"),
        ("instance-heatmap", ["--most", "0"], "--most must be at least 1"),
        ("weights", ["--threshold", "1.5"], "--threshold must be from 0 to 1"),
        ("weights", ["--threshold", "nan"], "--threshold must be from 0 to 1"),
    ],
)
def test_values_out_of_range(capsys, command, more, message):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--config-file", "c", "--weights", "w", "--input", "i", "--output", "o", *more])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(("command", "name"), [("weights", "a_weights.npz"), ("encodings", "encodings.png")])
def test_a_folder_in_the_place_of_a_result_is_one_line(tmp_path, capfd, command, name):
    write_photo(tmp_path / "a.png", 8, 8)
    (tmp_path / "out" / name).mkdir(parents=True)
    given = ["--config-file", "none", "--weights", "none", "--input", tmp_path, "--output", tmp_path / "out"]
    assert run_cli(lambda: main([command, *map(str, given)])) == 2
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1 and f"{name}: it is a folder" in errors[0]


def test_the_help_has_one_command_a_line(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert all(line.count("python ") <= 1 for line in lines)
    examples = [line.split()[2] for line in lines if line.strip().startswith("python ")]
    assert sorted(examples) == sorted(HELP)
