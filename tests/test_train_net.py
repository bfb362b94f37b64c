"""Training, resuming and evaluating through tools/train_net.py, in miniature but with every part real."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import CONFIG, arguments, render, train

from mask_former.data.id_map import read_id_map
from mask_former.data.loader import bounded_workers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run's folder and the results of its last evaluation."""
    folder = tmp_path_factory.mktemp("run")
    options = {"TEST__EVAL_PERIOD": 2, "TEST__KEEP_PREDICTIONS": True, "TEST__EXPECTED_RESULTS": "[]"}
    returned = train(data, arguments(folder, **options))
    written = json.loads((folder / "inference/toy_val/metrics.json").read_text())
    assert returned["sem_seg"]["mIoU"] == pytest.approx(written["sem_seg"]["mIoU"])
    return folder, written


def rows(folder: Path, key: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [line for line in lines if key in line]


def test_a_run_leaves_checkpoints_configuration_curves_and_metrics(run: tuple[Path, dict[str, Any]]) -> None:
    folder, results = run
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.yaml",
        "log.txt",
        "metrics.json",
        "last_checkpoint",
        "model_final.pth",
        "model_best.pth",
    } <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    last = rows(folder, "total_loss")[-1]
    parts = {f"loss_{kind}{suffix}" for kind in ("ce", "mask", "dice") for suffix in ("", "_0")}
    assert {name for name in last if name.startswith("loss_")} == parts
    assert all(0 < last[name] < 100 for name in parts)
    assert {"PQ", "SQ", "RQ", "PQ_th", "PQ_st"} <= results["panoptic_seg"].keys()
    assert "mIoU" in results["sem_seg"] and "AP" in results["segm"]
    assert all(0 <= value <= 100 for value in results["panoptic_seg"].values() if value is not None)


def test_predictions_are_kept_on_request_and_match_their_json(run: tuple[Path, dict[str, Any]]) -> None:
    folder = run[0] / "inference/toy_val"
    content = json.loads((folder / "panoptic.json").read_text())
    assert len(content["annotations"]) == 2
    for annotation in content["annotations"]:
        ids = read_id_map(folder / "panoptic" / annotation["file_name"])
        assert {segment["id"] for segment in annotation["segments_info"]} == set(ids[ids > 0].tolist())


def test_evaluation_of_the_checkpoint_repeats_the_last_evaluation(
    run: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    folder, results = run
    command = arguments(tmp_path, "--eval-only", MODEL__WEIGHTS=folder / "model_final.pth")
    again = train(data, command)
    assert again["sem_seg"]["mIoU"] == pytest.approx(results["sem_seg"]["mIoU"], rel=1e-6)
    assert again["panoptic_seg"]["PQ"] == pytest.approx(results["panoptic_seg"]["PQ"], rel=1e-6)


def test_resume_goes_on_with_optimiser_and_schedule(
    run: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    folder = run[0]
    for name in ("model_0000001.pth", "metrics.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    half = torch.load(folder / "model_0000001.pth", weights_only=True)
    train(data, arguments(tmp_path, "--resume"))
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)
    whole = torch.load(folder / "model_final.pth", weights_only=True)
    assert half["iteration"] == 1 and resumed["iteration"] == whole["iteration"] == 3
    assert {state["step"].item() for state in resumed["optimizer"]["state"].values()} == {4.0}
    rates = [group["lr"] for group in resumed["optimizer"]["param_groups"]]
    assert rates == [group["lr"] for group in whole["optimizer"]["param_groups"]]


def test_the_best_checkpoint_knows_its_metric(run: tuple[Path, dict[str, Any]]) -> None:
    best = torch.load(run[0] / "model_best.pth", weights_only=True)
    evaluations = {row["iteration"]: row["panoptic_seg/PQ"] for row in rows(run[0], "panoptic_seg/PQ")}
    assert best["best"] == {"metric": "panoptic_seg/PQ", "value": max(evaluations.values())}
    assert evaluations[best["iteration"]] == best["best"]["value"]


def test_the_same_seed_gives_the_same_losses(
    run: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path
) -> None:
    train(data, arguments(tmp_path, TEST__EVAL_PERIOD=2))
    first, second = rows(run[0], "total_loss"), rows(tmp_path, "total_loss")
    assert [row["total_loss"] for row in first] == pytest.approx(
        [row["total_loss"] for row in second], rel=1e-5
    )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_mixed_precision_trains_close_to_full_precision(
    run: tuple[Path, dict[str, Any]], data: Path, tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # float16 on a CPU takes seconds a step: the search for a scale that does not overflow is cut short
    scaler = partial(torch.amp.GradScaler, init_scale=8.0)
    monkeypatch.setattr("mask_former.training.step.torch.amp.GradScaler", scaler)
    options = {"SOLVER__AMP__ENABLED": True, "SOLVER__AMP__DTYPE": dtype, "DATASETS__TEST": "()"}
    train(data, arguments(tmp_path, **options))
    full, mixed = rows(run[0], "total_loss")[0], rows(tmp_path, "total_loss")[0]
    assert mixed["total_loss"] == pytest.approx(full["total_loss"], rel=0.1)
    state = torch.load(tmp_path / "model_final.pth", weights_only=True)
    moments = [parameter["exp_avg"] for parameter in state["optimizer"]["state"].values()]
    assert moments and all(moment.dtype == torch.float32 for moment in moments)
    assert (state["scaler"]["scale"] > 0) if dtype == "float16" else (state["scaler"] == {})
    assert state["guard"] == {"in_a_row": 0, "total": 0}


def test_workers_are_bounded_by_the_cores_and_gone_after_training(data: Path, tmp_path: Path) -> None:
    script = (
        "import sys, multiprocessing; sys.path.insert(0, 'tests'); from pathlib import Path; import toy_run;"
        f"toy_run.train(Path({str(data)!r}), toy_run.arguments(Path({str(tmp_path)!r}), SOLVER__MAX_ITER=2,"
        " DATALOADER__NUM_WORKERS=64)); print('left behind:', len(multiprocessing.active_children()))"
    )
    root = CONFIG.parent.parent.parent
    command = f"import sys; sys.path.insert(0, {str(root)!r}); {script}"
    done = subprocess.run([sys.executable, "-c", command], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip().endswith("left behind: 0")


def test_bounded_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from mask_former.config import load_config

    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    cfg = load_config(CONFIG, ["DATALOADER.NUM_WORKERS", "8"])
    assert bounded_workers(cfg) == 3
    cfg.DATALOADER.NUM_WORKERS = 0
    assert bounded_workers(cfg) == 0
