"""Watching a job until it ends: its log as it grows, and a line of progress."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from slurm.cluster import is_active, job_state
from slurm.plan import Plan
from slurm.restarts import rows_of
from slurm.sweep import is_finished

POLL_SECONDS = 1.0
PATIENT_POLL_SECONDS = 5.0  # for Slurm, which serves others too
UNKNOWN_POLLS = 3  # answers without a state, one after another, that mean the job's end


def wait_for_end(plan: Plan, jobs: Sequence[Any]) -> int:
    """Exit code 0 when all jobs have ended and their runs are finished, else 1."""
    while any(_is_going_on(job) for job in jobs):
        time.sleep(PATIENT_POLL_SECONDS)
    return report(plan)


def follow(plan: Plan, jobs: Sequence[Any]) -> int:
    """The first job's log on the screen, below it the progress; returns as `wait_for_end` does.

    Ctrl-C ends a local job, and only the watching of one of Slurm.
    """
    run, log = plan.runs[0], jobs[0].paths.stdout
    position, asked, going_on = _size(log), 0.0, True
    poll = POLL_SECONDS if _is_local(jobs[0]) else PATIENT_POLL_SECONDS
    progress = Progress(run.folder / "metrics.json")
    with tqdm(total=run.max_iter, unit="it", file=sys.stderr, dynamic_ncols=True) as bar:
        while going_on:
            if time.monotonic() - asked > poll:
                going_on, asked = any(_is_going_on(job) for job in jobs), time.monotonic()
            position = _show_new(log, position)
            bar.n = progress.done()
            bar.refresh()
            time.sleep(POLL_SECONDS if going_on else 0)
        _show_new(log, position)
    return report(plan)


class Progress:
    """How many iterations a growing metrics.json tells of; each line of it is read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self.inode = -1
        self.iterations = 0

    def done(self) -> int:
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self.inode or status.st_size < self.position:
                    self.inode, self.position, self.iterations = status.st_ino, 0, 0  # written anew
                file.seek(self.position)
                new = file.read()
        except OSError:
            return self.iterations
        whole = new[: new.rfind(b"\n") + 1]
        self.position += len(whole)
        steps = [row["iteration"] for row in rows_of(whole) if "total_loss" in row]
        self.iterations = steps[-1] + 1 if steps else self.iterations
        return self.iterations


def report(plan: Plan) -> int:
    unfinished = [run.folder for run in plan.runs if not is_finished(run.folder, run.max_iter)]
    for folder in unfinished:
        print(f"not finished: {folder} (logs: {plan.logs})", file=sys.stderr)
    return 1 if unfinished else 0


def _is_local(job: Any) -> bool:
    return getattr(job, "_process", None) is not None


def _is_going_on(job: Any) -> bool:
    if _is_local(job):
        return job._process.poll() is None
    for _ in range(UNKNOWN_POLLS):
        state = job_state(job.job_id)
        if state is not None:
            return is_active(state)
        time.sleep(POLL_SECONDS)
    return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _show_new(path: Path, position: int) -> int:
    """Print what the file has from `position` on, whole lines; returns where they end."""
    if not path.exists():
        return position
    with open(path, "rb") as file:
        file.seek(position)
        new = file.read()
    whole = new[: new.rfind(b"\n") + 1]
    if whole:
        tqdm.write(whole.decode(errors="replace").rstrip("\n"))
    return position + len(whole)
