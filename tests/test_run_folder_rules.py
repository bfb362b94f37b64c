"""What a run's folder allows: one writer, no mixing of two runs, nothing overwritten without being asked."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_run import arguments, render

from mask_former.atomic_write import LEFTOVER, UNFINISHED
from mask_former.training.checkpointer import Checkpointer
from tests.resumable import RunServer

SMALL = {"MODEL__BACKBONE__NAME": "TinyBackbone", "DATASETS__TEST": "()", "LOG__PERIOD": 1}


class Runs:
    """Runs of tools/train_net.py in one folder, and what they say."""

    def __init__(self, server: RunServer, folder: Path) -> None:
        self.server, self.folder, self.log = server, folder, folder.with_suffix(".log")

    def start(self, *flags: str, **options: Any) -> int:
        return self.server.start(arguments(self.folder, *flags, **{**SMALL, **options}), self.log)

    def run(self, *flags: str, **options: Any) -> tuple[int, str]:
        """Exit code, and the line of the error if there was one."""
        self.log.unlink(missing_ok=True)
        code = self.server.wait(self.start(*flags, **options))
        text = self.log.read_text()
        assert "Traceback" not in text, text[-3000:]
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert len(errors) == (code != 0), text[-3000:]
        return code, "".join(errors)

    @property
    def iterations(self) -> list[int]:
        lines = (self.folder / "metrics.json").read_text().splitlines()
        return [json.loads(line)["iteration"] for line in lines]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunServer]:
    server = RunServer(render(tmp_path_factory.mktemp("datasets")))
    yield server
    server.close()


@pytest.fixture
def runs(server: RunServer, tmp_path: Path) -> Runs:
    return Runs(server, tmp_path / "a run, ünïcode")


def test_a_second_run_is_refused_while_the_first_one_writes(runs: Runs) -> None:
    first = runs.start(SOLVER__MAX_ITER=100_000)
    while not (runs.folder / "metrics.json").exists() or not runs.iterations:
        time.sleep(0.05)
    second = Runs(runs.server, runs.folder)
    second.log = runs.folder.with_suffix(".second.log")
    for flags in (["--overwrite"], ["--eval-only", "--resume"]):
        code, said = second.run(*flags)
        assert code == 2 and f"being written by pid {first} " in said and "choose another OUTPUT_DIR" in said
    os.killpg(first, signal.SIGKILL)
    assert runs.server.wait(first) == -signal.SIGKILL
    assert runs.run("--resume", SOLVER__MAX_ITER=runs.iterations[-1] + 1)[0] == 0  # its lock died with it


def test_a_run_is_not_overwritten_unless_that_is_asked_for(runs: Runs) -> None:
    assert runs.run()[0] == 0
    before = (runs.folder / "model_final.pth").read_bytes()
    code, said = runs.run()
    assert code == 2 and "holds a run (model_final.pth)" in said
    assert "--resume" in said and "--overwrite" in said and "another OUTPUT_DIR" in said
    assert (runs.folder / "model_final.pth").read_bytes() == before
    assert runs.run("--overwrite", SOLVER__MAX_ITER=1, SEED=9)[0] == 0
    assert runs.iterations == [0]
    assert [path.name for path in runs.folder.glob("*.pth")] == ["model_final.pth"]
    assert (runs.folder / "model_final.pth").read_bytes() != before


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"MODEL__WEIGHTS": "/nowhere.pth"}, "/nowhere.pth"),
        ({"SOLVER__IMS_PER_BATCH": 3, "SOLVER__ACCUMULATION_STEPS": 2}, "multiple of 2"),
        ({"DATASETS__TRAIN": "('toy_trian',)"}, "toy_trian"),
    ],
    ids=["no weights", "uneven batch", "unknown data set"],
)
def test_what_cannot_start_overwrites_nothing(runs: Runs, options: dict[str, Any], expected: str) -> None:
    assert runs.run(SOLVER__MAX_ITER=2)[0] == 0
    before = {path: path.read_bytes() for path in runs.folder.glob("*.pth")}
    metrics = (runs.folder / "metrics.json").read_bytes()
    code, said = runs.run("--overwrite", **options)
    assert code == 2 and expected in said
    assert {path: path.read_bytes() for path in runs.folder.glob("*.pth")} == before
    assert (runs.folder / "metrics.json").read_bytes() == metrics


def test_a_run_may_start_from_the_one_that_it_overwrites(runs: Runs) -> None:
    assert runs.run(SOLVER__MAX_ITER=1)[0] == 0
    weights = {"MODEL__WEIGHTS": runs.folder / "model_final.pth"}
    assert runs.run("--overwrite", SOLVER__MAX_ITER=2, **weights)[0] == 0
    assert runs.iterations == [0, 1]
    assert len(json.loads((runs.folder / "run.json").read_text())["starts"]) == 1
    assert "this resume differs" not in runs.log.read_text()


@pytest.mark.parametrize("flag", ["--resume", "--eval-only"])
def test_overwriting_goes_with_nothing_that_needs_the_run(runs: Runs, flag: str) -> None:
    assert runs.run(SOLVER__MAX_ITER=1)[0] == 0
    code, said = runs.run(flag, "--overwrite")
    assert code == 2 and "give one of them" in said
    assert (runs.folder / "model_final.pth").is_file()


def test_without_its_tagged_checkpoint_a_run_goes_on_from_the_newest(runs: Runs) -> None:
    """A run that was extended: the final checkpoint of its first part is older than the others."""
    often = {"SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__KEEP_CHECKPOINTS": 0}
    assert runs.run(SOLVER__MAX_ITER=3, **often)[0] == 0  # 1, and 2 as the final one
    first = (runs.folder / "model_final.pth").read_bytes()
    assert runs.run("--resume", SOLVER__MAX_ITER=9, **often)[0] == 0
    (runs.folder / "model_final.pth").write_bytes(first)
    (runs.folder / "last_checkpoint").write_text("model_0000008.pth")  # deleted by hand
    checkpointer = Checkpointer(torch.nn.Module(), str(runs.folder))
    names = ["model_0000007.pth", "model_0000005.pth", "model_0000003.pth", "model_final.pth"]
    assert [path.name for path in checkpointer.candidates()] == [*names, "model_0000001.pth"]
    (runs.folder / "last_checkpoint").write_text("model_0000005.pth")  # 7 is another run's
    assert [path.name for path in checkpointer.candidates()] == [*names[1:], "model_0000001.pth"]
    (runs.folder / "model_final.pth").write_bytes(first[:1000])
    assert [path.name for path in checkpointer.candidates()] == [*names[1:3], "model_0000001.pth", names[3]]


def test_a_finished_run_has_nothing_to_resume(runs: Runs) -> None:
    assert runs.run()[0] == 0
    before = (runs.folder / "model_final.pth").read_bytes()
    assert runs.run("--resume", TEST__EXPECTED_RESULTS="[['sem_seg', 'mIoU', 1.0, 2.0]]")[0] == 0
    assert "nothing to train" in runs.log.read_text()
    assert runs.iterations == [0, 1, 2, 3] and (runs.folder / "model_final.pth").read_bytes() == before


def test_resuming_where_there_is_no_run_starts_one(runs: Runs) -> None:
    assert runs.run("--resume", SOLVER__MAX_ITER=2)[0] == 0
    assert runs.iterations == [0, 1]


def test_old_checkpoints_go_and_leftovers_of_killed_writers_too(runs: Runs) -> None:
    options = {"SOLVER__MAX_ITER": 9, "SOLVER__CHECKPOINT_PERIOD": 1, "SOLVER__KEEP_CHECKPOINTS": 2}
    runs.folder.mkdir()
    leftover = runs.folder / f".model_0000000.pth{UNFINISHED}abc"
    leftover.write_bytes(b"half")
    assert runs.run(**options)[0] == 0
    names = sorted(path.name for path in runs.folder.glob("*.pth"))
    assert names == ["model_0000006.pth", "model_0000007.pth", "model_final.pth"]
    assert not [path for path in runs.folder.iterdir() if LEFTOVER.fullmatch(path.name)]


def test_a_lower_rate_after_a_resume_is_the_one_that_is_used(runs: Runs) -> None:
    """Rate and schedule are the configuration's, the place in it is the checkpoint's."""
    poly = {"SOLVER__WARMUP_ITERS": 0, "SOLVER__WARMUP_FACTOR": 1.0}
    assert runs.run(SOLVER__MAX_ITER=2, SOLVER__BASE_LR=0.01, **poly)[0] == 0
    assert runs.run("--resume", SOLVER__MAX_ITER=4, SOLVER__BASE_LR=0.001, **poly)[0] == 0
    rows = [json.loads(line) for line in (runs.folder / "metrics.json").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx(
        [0.01, 0.01 * 0.5**0.9, 0.001 * 0.5**0.9, 0.001 * 0.25**0.9]
    )
    assert "SOLVER.BASE_LR: 0.01 -> 0.001" in runs.log.read_text()


def test_a_checkpoint_without_a_run_cannot_be_resumed(runs: Runs) -> None:
    assert runs.run(SOLVER__MAX_ITER=1)[0] == 0
    path = runs.folder / "model_final.pth"
    torch.save({"model": torch.load(path, weights_only=True)["model"], "iteration": 0}, path)
    code, said = runs.run("--resume")
    assert code == 2 and f"{path} does not hold a run" in said and "MODEL.WEIGHTS" in said


def test_the_run_tells_what_made_it(runs: Runs) -> None:
    assert runs.run(SOLVER__MAX_ITER=1, SEED=-1)[0] == 0
    assert runs.run("--resume", SOLVER__MAX_ITER=2, SEED=-1)[0] == 0
    first, second = json.loads((runs.folder / "run.json").read_text())["starts"]
    assert (first["start_iteration"], second["start_iteration"]) == (0, 1)
    assert (first["samples_seen"], second["samples_seen"]) == (0, 2)
    assert first["data_checksum"] == second["data_checksum"] and len(first["data_checksum"]) == 64
    assert first["seed"] == second["seed"]  # drawn at the first start, kept at the second
    for start in (first, second):
        assert (runs.folder / "provenance" / start["config"]).is_file()
        assert "--config-file" in start["command"] or start["command"]
    assert {"config.yaml", "log.txt", "metrics.json", "run.lock"} <= {p.name for p in runs.folder.iterdir()}
