"""What status.py tells of a run's folder, with and without Slurm's answer."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from mask_former.errors import InputError, run_cli
from slurm import cluster, status
from slurm.follow import Progress
from slurm.status import status_of

LAUNCH = {
    "job": "41",
    "executor": "slurm",
    "max_iter": 100,
    "max_restarts": 12,
    "config": "c.yaml",
    "gpus": 4,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """40 iterations of 2 s done, evaluated after 20, restarted once."""
    folder = tmp_path / "runs/mine"
    folder.mkdir(parents=True)
    rows: list[dict[str, Any]] = [
        {"iteration": 19, "total_loss": 5.0, "loss_ce": 1.0, "time": 2.0},
        {
            "iteration": 19,
            "panoptic_seg/PQ": 33.25,
            "sem_seg/mIoU": None,
            "evaluated": 2,
            "evaluation_time": 10.0,
        },
        {"iteration": 39, "total_loss": 4.0, "loss_ce": 0.5, "time": 2.0, "lr": 0.1},
    ]
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"iterat')
    (folder / "launch.json").write_text(json.dumps(LAUNCH))
    (folder / "run.json").write_text(json.dumps({"starts": [{}, {}]}))
    (folder / "run.lease").write_text(
        json.dumps({"token": "t", "job": "41", "restart": 1, "host": "n", "pid": 1, "since": ""})
    )
    return folder


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What the commands of Slurm answer; nothing at first."""
    texts: dict[str, str] = {}
    monkeypatch.setattr(cluster, "ask", lambda *command: texts.get(command[0]))
    return texts


def test_the_files_tell_progress_speed_losses_and_metrics(run: Path) -> None:
    one = status_of(run)
    assert (one.iteration, one.max_iter, one.seconds_per_iteration, one.seconds_left) == (39, 100, 2.0, 150.0)
    assert (one.restarts, one.max_restarts, one.evaluated) == (1, 12, 19)
    assert one.losses == {"total_loss": 4.0, "loss_ce": 0.5}
    assert one.metrics == {"panoptic_seg/PQ": 33.25}


@pytest.mark.parametrize(
    ("program", "text", "state"),
    [
        ("scontrol", "JobId=41 JobName=x UserId=a(1) JobState=PENDING Reason=Resources", "pending"),
        ("sacct", "TIMEOUT\n", "timeout"),
        ("sacct", "CANCELLED by 0\n", "cancelled"),
    ],
)
def test_slurm_knows_the_state_best(
    run: Path, answers: dict[str, str], program: str, text: str, state: str
) -> None:
    """Accounting is asked when the controller has forgotten the job."""
    answers[program] = text
    assert status_of(run).state == state


def test_without_an_answer_the_files_tell_the_state(run: Path) -> None:
    written = (run / "metrics.json").stat().st_mtime
    assert status_of(run, now=written + 60).state == "running"
    assert status_of(run, now=written + 3600).state == "stopped"
    (run / "metrics.json").unlink()
    assert status_of(run).state == "not started"
    (run / "finished.json").write_text('{"max_iter": 100}')
    assert status_of(run).state == "finished"
    (run / "finished.json").write_text('{"max_iter": 50}')  # of a shorter run, before it went on
    assert status_of(run).state == "not started"


def test_table_and_json_of_all_runs(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = run.parent / "sweep/a_seed0"
    sweep.mkdir(parents=True)
    (sweep / "launch.json").write_text(json.dumps({**LAUNCH, "job": "42_0"}))
    assert status.main(["--all", "--root", str(run.parent)]) == 0
    head, _, mine, other = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["run", "job", "state", "iteration"]
    for text in ("mine", "41", "40 / 100", "0:02 h", "1 / 12", "4", "PQ 33.25 (at 20)"):
        assert text in mine
    assert "a_seed0" in other and "not started" in other
    assert status.main(["--json", str(run)]) == 0
    (one,) = json.loads(capsys.readouterr().out)
    assert one["seconds_left"] == 150.0 and one["folder"] == str(run)


@pytest.mark.parametrize("damage", ["{", '{"max_iter": "many"}'])
def test_a_damaged_run_is_told_among_the_others(
    run: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    other = run.parent / "other"
    other.mkdir()
    (other / "launch.json").write_text(damage)
    (other / "finished.json").write_text('{"max_iter": 3}')
    assert status.main(["--all", "--root", str(run.parent)]) == 0
    _, _, mine, damaged = capsys.readouterr().out.splitlines()
    assert "40 / 100" in mine and "damaged" in damaged


def test_progress_reads_each_line_once_and_a_new_file_anew(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    progress = Progress(file)
    assert progress.done() == 0
    file.write_text('{"iteration": 4, "total_loss": 1}\n{"iteration": 5, "total')
    assert progress.done() == 5 and progress.position == file.read_text().index("\n") + 1
    with open(file, "a") as more:
        more.write('_loss": 1}\n{"iteration": 5, "evaluated": 1}\n')
    assert progress.done() == 6
    file.write_text('{"iteration": 1, "total_loss": 1}\n')  # back to a checkpoint
    assert progress.done() == 2


def test_a_folder_without_a_run_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="holds no run"):
        status_of(tmp_path)
    assert run_cli(lambda: status.main([])) == 2
    assert status.main(["--all", "--root", str(tmp_path)]) == 0
    assert "no runs below" in capsys.readouterr().out.splitlines()[-1]
    assert not os.listdir(tmp_path)
