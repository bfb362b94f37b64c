"""PISR through tools/train_net.py in miniature: bfloat16, evaluation, resuming, what the curves hold."""

import json

import pytest
import torch
from toy_run import CONFIG, arguments, render, train

PISR_CONFIG = CONFIG.with_name("maskformer_tiny_pisr.yaml")
OPTIONS = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": "bfloat16"}
PISR = "sem_seg_head.predictor.pisr."
KINDS = ("loss_ce", "loss_mask", "loss_dice")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return render(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def folder(data, tmp_path_factory):
    """A finished run of four iterations with a checkpoint after two."""
    folder = tmp_path_factory.mktemp("run")
    train(data, arguments(folder, config=PISR_CONFIG, **OPTIONS))
    return folder


def last_row(folder):
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [row for row in rows if "total_loss" in row][-1]


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def test_curves_hold_both_stages_losses_and_pisrs_numbers(folder):
    row = last_row(folder)
    stages = ("final", "initial", "initial_0")  # two decoder layers
    losses = {f"{kind}_{stage}" for kind in KINDS for stage in stages}
    assert row["iteration"] == 3 and {name for name in row if name.startswith("loss_")} == losses
    assert row["total_loss"] == pytest.approx(sum(row[name] for name in losses), rel=1e-6)
    numbers = {name: value for name, value in row.items() if name.startswith("pisr/")}
    assert numbers.keys() == {
        "pisr/pixel_residual",
        "pisr/query_residual",
        "pisr/group_deviation",
        "pisr/weight_mean",
        "pisr/weight_min",
        "pisr/weight_max",
    }
    assert all(0 < value < 10 for value in numbers.values())


def test_pisr_is_trained_saved_and_evaluated(folder):
    half, final = weights(folder / "model_0000001.pth"), weights(folder / "model_final.pth")
    own = {name for name in final if name.startswith(PISR)}
    assert {name for name in own if torch.equal(half[name], final[name])} == set()
    assert final[f"{PISR}pixel_feedback.project.weight"].any()
    results = json.loads((folder / "inference/toy_val/metrics.json").read_text())
    assert 0 <= results["panoptic_seg"]["PQ"] <= 100


def test_resuming_goes_on_where_it_stopped(folder, data, tmp_path):
    name = "model_0000001.pth"
    (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text(name)
    train(data, arguments(tmp_path, "--resume", config=PISR_CONFIG, **OPTIONS, DATASETS__TEST="()"))
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert resumed["iteration"] == 3 and last_row(tmp_path)["iteration"] == 3
    steps = {state["step"].item() for state in resumed["optimizer"]["state"].values()}
    assert steps == {4.0}
    assert resumed["model"].keys() == weights(folder / "model_final.pth").keys()
    # O_f goes on from two steps' training: an Adam step is at most about the learning rate, 5e-5 at warm-up
    begun = weights(folder / name)[f"{PISR}pixel_feedback.project.weight"]
    moved = (resumed["model"][f"{PISR}pixel_feedback.project.weight"] - begun).abs().max()
    assert 0 < moved < 5e-4
