"""--profile writes a trace and tables of a few steps, and the run goes on as it would have."""

import gzip
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy_run import arguments, render, train

from mask_former.errors import InputError
from mask_former.training import profiling


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("datasets"))


def run(data: Path, folder: Path, *flags: str) -> list[dict[str, float]]:
    """The rows of a run's log."""
    train(data, arguments(folder, *flags, DATASETS__TEST="()", LOG__PERIOD=1))
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_profile_is_written_and_the_run_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling.ProfileHook.__init__, "__defaults__", (1, 2))  # the run has 4 iterations
    rows = run(data, tmp_path / "profiled", "--profile")
    with gzip.open(tmp_path / "profiled/profile/trace.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    steps = [event for event in events if event.get("name", "").startswith("Optimizer.step#AdamW")]
    assert len(steps) == 2
    summary = (tmp_path / "profiled/profile/summary.txt").read_text()
    assert summary.startswith("2 iterations") and "aten::" in summary and "By memory" in summary
    assert (tmp_path / "profiled/model_final.pth").is_file()
    plain = run(data, tmp_path / "plain")
    assert [row["total_loss"] for row in rows] == [row["total_loss"] for row in plain]
    assert not (tmp_path / "plain/profile").exists()


def profiled_loop(folder: Path, iterations: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The warnings of a loop that adds numbers, with a hook that profiles the second iteration."""
    said: list[str] = []
    monkeypatch.setattr(profiling.logger, "warning", lambda text, *values: said.append(text % values))
    hook = profiling.ProfileHook(folder, warm_up=1, steps=1)
    hook.trainer = SimpleNamespace(start_iter=7, iter=7)  # resumed: what counts is this start
    for hook.trainer.iter in range(7, 7 + iterations):
        hook.before_step()
        torch.ones(3) + 1
        hook.after_step()
    hook.trainer.iter += 1
    hook.after_train()
    return said


def test_a_profile_that_cannot_be_written_stops_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "profile").write_text("a file where the folder should be")
    said = profiled_loop(tmp_path, 4, monkeypatch)
    assert said == [f"the profile cannot be written to {tmp_path / 'profile'}: File exists"]


def test_a_run_too_short_to_profile_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = profiled_loop(tmp_path, 1, monkeypatch)
    assert said == ["nothing is profiled: that begins after 1 iterations, and the run had 1"]
    assert not profiled_loop(tmp_path, 2, monkeypatch)
    assert "aten::add" in (tmp_path / "profile/summary.txt").read_text()


def test_evaluation_has_nothing_to_profile(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--profile looks at training"):
        run(data, tmp_path, "--profile", "--eval-only")
