"""Two copies of a job in one folder: the newer one writes, the older one ends. With real processes."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from mask_former.errors import InputError
from mask_former.training.checkpointer import Checkpointer
from mask_former.training.lease import LEASE_FILE, TAKEN_OVER, Claim, LeaseLost, owned, read_lease
from mask_former.training.log import TrainingLog
from mask_former.training.run_lock import LOCK_FILE, locked

ROOT = Path(__file__).resolve().parent.parent
# Writes a line every 10 ms as long as its fence lets it; or does not look at it.
COPY = """
import sys, time
from mask_former.errors import run_cli
from mask_former.training.lease import Claim, owned
folder, job, restart, looks = sys.argv[1:]
def main():
    with owned(folder, Claim(job, int(restart)) if job else None) as fence:
        print("owns", flush=True)
        while True:
            if looks == "looks":
                fence()
            with open(folder + "/lines", "a") as file:
                file.write(restart + chr(10))
            time.sleep(0.01)
sys.exit(run_cli(main))
"""


@contextmanager
def copy(folder: Path, job: str, restart: int, looks: bool = True) -> Iterator[Any]:
    command = [sys.executable, "-c", COPY, str(folder), job, str(restart), "looks" if looks else ""]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline().strip() == "owns"
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(folder: Path) -> list[str]:
    return (folder / "lines").read_text().split()


def test_a_later_restart_takes_over_and_the_old_copy_ends(tmp_path: Path) -> None:
    with copy(tmp_path, "7", 0) as old:
        time.sleep(0.2)
        with owned(tmp_path, Claim("7", 1)) as fence:
            assert old.wait(30) == 2  # bad input, in one line
            written = len(lines(tmp_path))
            said = old.stderr.read()
            assert "belongs to restart 1 of job 7 on" in said and "restart 0 of job 7 ends" in said
            assert said.count("\n") == 1
            fence()
            lease = read_lease(tmp_path)
            assert lease and (lease.job, lease.restart, lease.pid) == ("7", 1, os.getpid())
            time.sleep(0.1)
            assert len(lines(tmp_path)) == written > 5


def test_a_copy_that_never_looks_ends_within_seconds_too(tmp_path: Path) -> None:
    """It hangs in an exchange with a node that is down, say."""
    with copy(tmp_path, "7", 0, looks=False) as old:
        began = time.monotonic()
        with owned(tmp_path, Claim("7", 1)):
            assert time.monotonic() - began < 8
            assert old.wait(1) == TAKEN_OVER
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_copy_that_never_looks_says_that_it_has_ended(tmp_path: Path) -> None:
    """In the lock file, which a new copy on another host waits for."""
    with copy(tmp_path, "7", 0, looks=False) as old:
        lease = json.loads((tmp_path / LEASE_FILE).read_text())
        (tmp_path / LEASE_FILE).write_text(json.dumps(lease | {"token": "other", "restart": 1}))
        assert old.wait(30) == TAKEN_OVER
        assert (tmp_path / LOCK_FILE).read_text() == ""


def test_a_copy_that_does_not_answer_is_left_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Stopped, as on a node that is cut off, it holds its lock; when it wakes up it writes nothing."""
    caplog.set_level(logging.INFO)
    with copy(tmp_path, "7", 0) as old:
        while not (tmp_path / "lines").exists():
            time.sleep(0.01)
        os.kill(old.pid, signal.SIGSTOP)
        with owned(tmp_path, Claim("7", 2), patience=0.5) as fence:
            assert "has not let go of it" in caplog.text
            written = len(lines(tmp_path))
            os.kill(old.pid, signal.SIGCONT)
            assert old.wait(30) in (2, TAKEN_OVER)
            assert len(lines(tmp_path)) <= written + 1  # the line it was in the middle of
            fence()
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def test_a_restart_that_was_killed_while_it_waited_is_no_hindrance(tmp_path: Path) -> None:
    """Restart 0 hangs and holds the lock, restart 1 has written its lease and dies: restart 2 takes over."""
    with copy(tmp_path, "7", 0) as old:
        os.kill(old.pid, signal.SIGSTOP)
        command = [sys.executable, "-c", COPY, str(tmp_path), "7", "1", "looks"]
        waiting = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while read_lease(tmp_path).restart != 1:
            assert time.monotonic() < end and waiting.poll() is None
            time.sleep(0.05)
        waiting.kill()
        waiting.wait()
        with owned(tmp_path, Claim("7", 2), patience=0.5) as fence:
            fence()
            assert read_lease(tmp_path).restart == 2
            assert json.loads((tmp_path / LOCK_FILE).read_text())["restart"] == 2


@pytest.mark.parametrize(
    ("job", "restart", "other", "other_restart"),
    [("7", 1, "7", 1), ("7", 1, "7", 0), ("7", 0, "8", 5), ("", 0, "7", 1), ("7", 0, "", 0)],
)
def test_any_other_run_is_refused_and_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: str,
    restart: int,
    other: str,
    other_restart: int,
) -> None:
    """The same or an earlier restart, another job, a run without a job, a job where a run without one is."""
    monkeypatch.setattr("mask_former.training.lease.PATIENCE", 0.1)
    with copy(tmp_path, job, restart) as holder:
        before = read_lease(tmp_path)
        claim = Claim(other, other_restart) if other else None
        with pytest.raises(InputError, match=f"being written by pid {holder.pid}"), owned(tmp_path, claim):
            pytest.fail("two runs write to one folder")
        assert read_lease(tmp_path) == before
        assert holder.poll() is None


def test_a_requeued_job_does_not_take_a_folder_that_others_used_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mask_former.training.lease.PATIENCE", 0.1)
    with owned(tmp_path, Claim("7", 0)):
        pass
    with copy(tmp_path, "", 0):
        assert not (tmp_path / LEASE_FILE).exists()
        with pytest.raises(InputError), owned(tmp_path, Claim("7", 1)):
            pytest.fail("two runs write to one folder")


def test_a_lock_of_another_run_is_never_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even when it came between the old copy's end and the new copy's start."""
    with owned(tmp_path, Claim("7", 0)):
        stale = (tmp_path / LEASE_FILE).read_text()
    with copy(tmp_path, "", 0):
        (tmp_path / LEASE_FILE).write_text(stale)
        with pytest.raises(InputError), owned(tmp_path, Claim("7", 1), patience=0.1):
            pytest.fail("two runs write to one folder")


def test_without_its_lease_nothing_more_is_written(tmp_path: Path) -> None:
    """Neither a checkpoint, though its bytes are written already, nor a row."""
    (tmp_path / "model").mkdir()
    model = torch.nn.Linear(1, 1)
    with owned(tmp_path, Claim("7", 0)) as fence:
        checkpointer = Checkpointer(model, str(tmp_path / "model"), fence=fence)
        checkpointer.save("model_0000001")
        before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
        (tmp_path / LEASE_FILE).write_text(
            '{"token": "x", "job": "7", "restart": 1, "host": "node2", "pid": 1, "since": ""}'
        )
        with pytest.raises(LeaseLost, match="belongs to restart 1 of job 7 on node2 now"):
            checkpointer.save("model_0000002")
        assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before

        written: list[int] = []

        class Rows:
            def write(self, iteration: int, numbers: Any) -> None:
                written.append(iteration)

            def close(self) -> None: ...

        log = TrainingLog(1, 10, [Rows()], fence=fence)
        with pytest.raises(LeaseLost):
            log.add(0, {"time": 1.0, "data_time": 0.0})
        assert not written
        (tmp_path / LEASE_FILE).unlink()
        with pytest.raises(LeaseLost, match="is gone"):
            fence()


@pytest.mark.parametrize(
    ("lost_in", "there"), [("model_0000002.pth", []), ("last_checkpoint", ["model_0000002.pth"])]
)
def test_a_lease_lost_while_bytes_go_to_the_disk_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost_in: str, there: list[str]
) -> None:
    """Those of a checkpoint, or of the tag that makes it the one to resume from."""
    lost, sync = [], os.fsync

    def slow_fsync(handle: int) -> None:
        sync(handle)
        if os.readlink(f"/proc/self/fd/{handle}").startswith(f"{tmp_path}/.{lost_in}"):
            lost.append(handle)

    def fence() -> None:
        if lost:
            raise LeaseLost("lost")

    checkpointer = Checkpointer(torch.nn.Linear(1, 1), str(tmp_path), fence=fence)
    checkpointer.save("model_0000001")
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "fsync", slow_fsync)
    lost.clear()
    with pytest.raises(LeaseLost):
        checkpointer.save("model_0000002")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, *there])
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_a_run_without_a_job_leaves_no_lease(tmp_path: Path) -> None:
    with owned(tmp_path) as fence:
        fence()
        assert not (tmp_path / LEASE_FILE).exists()
    with locked(tmp_path, patience=0):
        pass
