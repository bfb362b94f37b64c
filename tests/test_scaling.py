"""A recipe scaled to another batch: by hand, and as tools/train_net.py shows it before it starts."""

from pathlib import Path
from typing import Any

import pytest
from toy_run import CONFIG, forget_datasets

from mask_former.training.scaling import scale_to_batch
from tests.tiny import tiny_config
from tools import train_net

RECIPE = {
    "SOLVER.BASE_LR": 0.004,
    "SOLVER.MAX_ITER": 1000,
    "SOLVER.STEPS": (500, 900),
    "SOLVER.WARMUP_ITERS": 10,
    "SOLVER.CHECKPOINT_PERIOD": 100,
    "TEST.EVAL_PERIOD": 0,
}


def scaled(batch: int, rule: str = "linear", fixed: tuple[str, ...] = ()) -> dict[str, Any]:
    cfg = tiny_config({**RECIPE, "SOLVER.IMS_PER_BATCH": batch})
    changes = scale_to_batch(cfg, 16, rule, fixed)
    result = {
        "lr": cfg.SOLVER.BASE_LR,
        "iterations": cfg.SOLVER.MAX_ITER,
        "steps": cfg.SOLVER.STEPS,
        "warmup": cfg.SOLVER.WARMUP_ITERS,
        "saves": cfg.SOLVER.CHECKPOINT_PERIOD,
        "evaluates": cfg.TEST.EVAL_PERIOD,
    }
    assert all(old != new for _, old, new in changes)
    return result


def test_a_quarter_of_the_batch() -> None:
    assert scaled(4) == {
        "lr": 0.001,
        "iterations": 4000,
        "steps": (2000, 3600),
        "warmup": 40,
        "saves": 400,
        "evaluates": 0,
    }
    assert scaled(4, "sqrt")["lr"] == 0.002 and scaled(4, "sqrt")["iterations"] == 4000


def test_a_larger_batch_keeps_at_least_one_iteration_of_each() -> None:
    assert scaled(32)["iterations"] == 500 and scaled(32)["lr"] == 0.008
    assert scaled(16 * 64)["warmup"] == 1


def test_the_same_batch_changes_nothing() -> None:
    cfg = tiny_config({**RECIPE, "SOLVER.IMS_PER_BATCH": 16})
    assert scale_to_batch(cfg, 16) == []


def test_what_a_user_has_set_stays() -> None:
    result = scaled(4, fixed=("SOLVER.MAX_ITER", "SOLVER.BASE_LR"))
    assert (result["lr"], result["iterations"], result["warmup"]) == (0.004, 1000, 40)


@pytest.fixture
def own_datasets() -> None:
    """Other tests may have registered the toy data sets under other paths."""
    forget_datasets()


@pytest.mark.usefixtures("own_datasets")
def test_the_command_line_scales_from_the_files_batch_and_says_so(tmp_path: Path) -> None:
    """The toy configuration: batches of 8, rate 0.001, 300 iterations, warm-up of 20."""
    command = ["--config-file", str(CONFIG), "--auto-scale"]
    command += ["OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", "2", "SOLVER.CHECKPOINT_PERIOD", "50"]
    cfg, said = train_net.configuration(train_net.parser().parse_args(command))
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (0.00025, 1200, 80)
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 50
    assert "batch 8 -> 2" in said
    lines = [line.split() for line in said.splitlines()]
    assert ["SOLVER.BASE_LR", "0.001", "0.00025"] in lines and ["SOLVER.MAX_ITER", "300", "1200"] in lines


@pytest.mark.usefixtures("own_datasets")
def test_without_the_flag_nothing_is_scaled() -> None:
    command = ["--config-file", str(CONFIG), "SOLVER.IMS_PER_BATCH", "2"]
    cfg, said = train_net.configuration(train_net.parser().parse_args(command))
    assert cfg.SOLVER.BASE_LR == 0.001 and said == ""
