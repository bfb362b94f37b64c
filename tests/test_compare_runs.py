"""What the page says of two runs: curves, the configurations' difference, provenance."""

import json

import pytest

from mask_former.config import load_config
from pisr_maskformer import add_pisr_config
from tests.toy_models import PISR_CONFIG
from tests.toy_run import CONFIG
from tools.comparison.runs import config_difference, provenance, training_curves
from tools.comparison.sources import run_folder

LOSS = "loss of the final prediction"


def write_rows(folder, *rows):
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_loss_of_the_prediction_that_counts(tmp_path):
    with_pisr = {
        "loss_ce_final": 1.0,
        "loss_mask_final": 0.25,
        "loss_dice_final": 0.5,
        "loss_ce_initial": 9.0,
    }
    without = {"loss_ce": 2.0, "loss_mask": 0.5, "loss_dice": 1.0, "loss_ce_0": 9.0}
    rows = [
        {"iteration": 19, "total_loss": 99.0, **without},
        {"iteration": 39, "total_loss": 99.0, **with_pisr},
    ]
    curve = training_curves(write_rows(tmp_path, *rows))[LOSS]
    assert list(curve.steps) == [19, 39] and list(curve.values) == [3.5, 1.75]


def test_evaluations_and_rows_that_cannot_be_read(tmp_path):
    rows = [{"iteration": 9, "panoptic_seg/PQ": 30.0}, {"iteration": 19, "panoptic_seg/PQ": None}]
    write_rows(tmp_path, *rows)
    with (tmp_path / "metrics.json").open("ab") as file:
        file.write(b'[1]\n{"iteration": 29, "panoptic_seg/PQ": 31.0}\n{"iteration": 39, "panop')
    curves = training_curves(tmp_path)
    assert list(curves) == ["PQ"] and list(curves["PQ"].steps) == [9, 29]


def test_a_row_written_twice_counts_once_the_last_time(tmp_path):
    rows = [{"iteration": 9, "sem_seg/mIoU": 1.0}, {"iteration": 9, "sem_seg/mIoU": 2.0}]
    assert list(training_curves(write_rows(tmp_path, *rows))["mIoU"].values) == [2.0]


def test_without_a_run_there_is_nothing_to_tell(tmp_path):
    assert training_curves(None) == training_curves(tmp_path) == {}
    assert provenance(None) == provenance(tmp_path) == {}


def test_what_differs_between_two_configurations():
    baseline, pisr = (
        load_config(path, ["OUTPUT_DIR", path.stem], extend=[add_pisr_config])
        for path in (CONFIG, PISR_CONFIG)
    )
    difference = config_difference(baseline.dump(), pisr.dump())
    assert difference is not None
    assert ("MODEL.PISR.NUM_INSTANCES", "50", "20") in difference
    assert {key for key, _, _ in difference} == {
        "MODEL.MASK_FORMER.CRITERION_NAME",
        "MODEL.MASK_FORMER.PREDICTOR_NAME",
        "MODEL.PISR.NUM_INSTANCES",
    }
    assert config_difference(baseline.dump(), baseline.dump()) == []


@pytest.mark.parametrize("unknown", [None, "", "a: [", "just words"])
def test_a_configuration_that_is_not_known(unknown):
    assert config_difference("A: 1", unknown) is None


def test_provenance_is_that_of_the_last_start(tmp_path):
    git = {"revision": "abc123", "dirty": True}
    starts = [{"seed": 1}, {"seed": 7, "data_checksum": "f00", "git": git, "gpus": [], "torch": "2.4"}]
    (tmp_path / "run.json").write_text(json.dumps({"starts": starts}))
    told = provenance(tmp_path)
    assert told["revision"] == "abc123, with uncommitted changes"
    assert (told["seed"], told["data"], told["starts"], told["GPUs"]) == ("7", "f00", "2", "none")


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 3}', '{"starts": []}', '{"starts": [4]}'])
def test_a_damaged_run_file_tells_nothing(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert provenance(tmp_path) == {}


def test_a_runs_folder_is_found_from_its_predictions(tmp_path):
    predictions = tmp_path / "run/inference/toy_val"
    predictions.mkdir(parents=True)
    (tmp_path / "config.yaml").touch()
    assert run_folder(predictions, above=3) is None, "any folder may have a config.yaml"
    (tmp_path / "run/run.json").touch()
    assert run_folder(predictions, above=3) == (tmp_path / "run").resolve()
    assert run_folder(predictions, above=0) is None
    assert run_folder(tmp_path / "run", above=0) == tmp_path / "run"
