"""Runs killed with SIGKILL at random moments end as an undisturbed one: losses, images, weights, rows once.

The toy configuration made tinier, with dropout, colour jitter, two loader workers and micro-batches: all that
draws random numbers or looks ahead.
"""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import arguments, render

from mask_former.atomic_write import LEFTOVER
from tests.resumable import KILLED, RunServer

ITERATIONS = 30
OPTIONS = {
    "SOLVER__MAX_ITER": ITERATIONS,
    "SOLVER__IMS_PER_BATCH": 4,
    "SOLVER__ACCUMULATION_STEPS": 2,
    "SOLVER__CHECKPOINT_PERIOD": 4,
    "MODEL__MASK_FORMER__DROPOUT": 0.1,
    "INPUT__COLOR_AUG_SSD": True,
    "DATALOADER__NUM_WORKERS": 2,
    "LOG__PERIOD": 1,
    "TEST__EVAL_PERIOD": 12,
    "SEED": 3,
}
NOT_COMPARED = {"time", "data_time", "memory_mb", "evaluation_time"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[RunServer]:
    server = RunServer(data)
    yield server
    server.close()


def run_to_end(server: RunServer, folder: Path, *flags: str, **options: Any) -> None:
    command = arguments(folder, *flags, **{**OPTIONS, **options})
    code = server.wait(server.start(command, folder.with_suffix(".log")))
    assert code == 0, folder.with_suffix(".log").read_text()[-3000:]


@pytest.fixture(scope="module")
def undisturbed(server: RunServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_to_end(server, folder)
    return folder


def rows(folder: Path) -> list[dict[str, Any]]:
    """The log without what is measured with a clock."""
    lines = (folder / "metrics.json").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in NOT_COMPARED} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth", weights_only=True)["model"]


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    found, expected = rows(folder), rows(undisturbed)
    assert [row["iteration"] for row in found] == [row["iteration"] for row in expected]
    for one, other in zip(found, expected, strict=True):
        assert one == other
    ours, theirs = weights(folder), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not [path.name for path in folder.iterdir() if LEFTOVER.fullmatch(path.name)]


def kill(run: int) -> None:
    """The whole process group at once, as when a machine goes down."""
    os.killpg(run, signal.SIGKILL)


def starts(folder: Path) -> list[dict[str, Any]]:
    """The records of each time that the run has begun to train."""
    file = folder / "run.json"
    return json.loads(file.read_text())["starts"] if file.exists() else []


def tag(folder: Path) -> str:
    """The checkpoint that a resumed run starts from."""
    file = folder / "last_checkpoint"
    return file.read_text() if file.exists() else ""


def steps_done(folder: Path) -> int:
    """Steps since the last start, by the log."""
    start = starts(folder)[-1]["start_iteration"]
    lines = (folder / "metrics.json").read_bytes().splitlines()
    return sum(b'"total_loss"' in line for line in lines) - start


def is_over(folder: Path) -> bool:
    return tag(folder) == "model_final.pth"


def wait_until(condition: Any, seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.002)
    return False


def test_the_undisturbed_run_is_what_it_should_be(undisturbed: Path) -> None:
    found = rows(undisturbed)
    steps = [row for row in found if "total_loss" in row]
    assert [row["iteration"] for row in steps] == list(range(ITERATIONS))
    assert [row["iteration"] for row in found if "evaluated" in row] == [11, 23, 29]
    assert all(len(row["image_ids"]) == 4 for row in steps)
    # four images, batches of four: every batch holds each image once, in an order of its own
    assert all(len(set(row["image_ids"])) == 4 for row in steps)
    assert len({tuple(row["image_ids"]) for row in steps}) > 5
    assert len({row["total_loss"] for row in steps}) == ITERATIONS


@pytest.mark.slow
def test_twenty_kills_at_random_moments(server: RunServer, undisturbed: Path, tmp_path: Path) -> None:
    """A moment is some steps and a fraction of one after each start: in steps, saves, evaluations."""
    moments = random.Random(20)
    kills = 0
    resumed_from = set()
    while kills < 20:
        folder, log = tmp_path / f"run_{kills}", tmp_path / f"run_{kills}.log"
        while kills < 20:
            before = len(starts(folder))
            run = server.start(arguments(folder, "--resume", **OPTIONS), log)
            assert wait_until(lambda: len(starts(folder)) > before)  # noqa: B023
            steps = moments.randrange(9)
            wait_until(lambda: steps_done(folder) >= steps or is_over(folder))  # noqa: B023
            time.sleep(moments.uniform(0, 0.3))
            kill(run)
            if server.wait(run) != KILLED:  # it was over before
                break
            kills += 1
            resumed_from |= {one["start_iteration"] for one in starts(folder)}
        run_to_end(server, folder, "--resume")
        assert_same_run(folder, undisturbed)
    assert resumed_from >= {0, 8, 16}  # kills were spread over the run


def test_kills_while_a_checkpoint_is_being_written(data: Path, undisturbed: Path, tmp_path: Path) -> None:
    server, folder, log = RunServer(data, slow_writes=0.3), tmp_path / "run", tmp_path / "run.log"

    def is_writing() -> bool:
        return folder.exists() and any(LEFTOVER.fullmatch(name) for name in os.listdir(folder))

    hits = 0
    for wanted in (1, 2, 2):  # the first checkpoint of all, then later ones
        run = server.start(arguments(folder, "--resume", **OPTIONS), log)
        for _ in range(wanted - 1):
            assert wait_until(is_writing) and wait_until(lambda: not is_writing())
        assert wait_until(is_writing)
        names = {path.name for path in folder.glob("model_*.pth")}
        kill(run)
        assert server.wait(run) == KILLED
        hits += is_writing()  # a leftover: the file was not finished
        assert {path.name for path in folder.glob("model_*.pth")} == names
    assert hits == 3
    run_to_end(server, folder, "--resume")
    server.close()
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("damage", ["cut short", "empty", "a byte changed", "no archive"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    server: RunServer, undisturbed: Path, tmp_path: Path, damage: str
) -> None:
    """The undisturbed run's last three checkpoints are those of iterations 19, 23 and 27."""
    folder, last = tmp_path / "run", tmp_path / "run/model_0000027.pth"
    shutil.copytree(undisturbed, folder)
    (folder / "model_final.pth").unlink()
    (folder / "last_checkpoint").write_text(last.name)
    raw = bytearray(last.read_bytes())
    raw[len(raw) // 2] ^= 1
    spoilt = {
        "cut short": raw[: len(raw) // 2],
        "empty": b"",
        "a byte changed": raw,
        "no archive": b"what is this",
    }
    last.write_bytes(spoilt[damage])
    run_to_end(server, folder, "--resume")
    log = folder.with_suffix(".log").read_text()
    assert f"{last} is " in log and "resuming from the checkpoint before it" in log
    assert starts(folder)[-1]["start_iteration"] == 24
    assert_same_run(folder, undisturbed)


def test_a_run_killed_in_its_evaluation_evaluates_first(
    server: RunServer, undisturbed: Path, tmp_path: Path
) -> None:
    folder, log = tmp_path / "run", tmp_path / "run.log"
    run = server.start(arguments(folder, **OPTIONS), log)
    assert wait_until(lambda: tag(folder) == "model_0000011.pth")  # saved just before the evaluation
    kill(run)
    assert server.wait(run) == KILLED
    assert not any("evaluated" in row for row in rows(folder))
    run_to_end(server, folder, "--resume")
    assert "the evaluation of iteration 11 comes first" in log.read_text()
    assert_same_run(folder, undisturbed)


def test_the_scale_of_float16_is_resumed(server: RunServer, tmp_path: Path) -> None:
    """The first steps overflow and lower it; on a small network, since float16 on a CPU is slow."""
    options = {"SOLVER__AMP__ENABLED": True, "MODEL__BACKBONE__NAME": "TinyBackbone", "DATASETS__TEST": "()"}
    run_to_end(server, tmp_path / "whole", SOLVER__MAX_ITER=8, **options)
    run_to_end(server, tmp_path / "cut", SOLVER__MAX_ITER=5, **options)
    run_to_end(server, tmp_path / "cut", "--resume", SOLVER__MAX_ITER=8, **options)
    whole, cut = rows(tmp_path / "whole"), rows(tmp_path / "cut")
    scales = [row["loss_scale"] for row in whole]
    assert len(scales) == 8 and len(set(scales)) > 1 and scales[-1] < 65536
    assert [row["loss_scale"] for row in cut] == scales
    # the learning rate of the first five iterations is that of a shorter schedule
    assert [row["image_ids"] for row in cut] == [row["image_ids"] for row in whole]


def test_neither_workers_nor_micro_batches_change_a_run(
    server: RunServer, undisturbed: Path, tmp_path: Path
) -> None:
    """Without workers the run is the same, bit for bit; with one micro-batch up to rounding."""
    run_to_end(server, tmp_path / "alone", DATALOADER__NUM_WORKERS=0)
    assert_same_run(tmp_path / "alone", undisturbed)
    without = {"MODEL__MASK_FORMER__DROPOUT": 0.0, "SOLVER__MAX_ITER": 3, "DATASETS__TEST": "()"}
    run_to_end(server, tmp_path / "two", **without)
    run_to_end(server, tmp_path / "one", SOLVER__ACCUMULATION_STEPS=1, **without)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        assert one["image_ids"] == two["image_ids"] and one["targets"] == two["targets"]
        for name in one:
            if name.startswith("loss") or name == "gradient_norm":
                assert one[name] == pytest.approx(two[name], rel=1e-4), name
