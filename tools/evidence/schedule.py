"""All runs of a plan, some at a time, until each is done or given up.

Nothing is remembered between two calls but what the runs' folders tell, so a schedule that is killed and
started again goes on: done runs are skipped, runs that go on without it are waited for, the rest is started.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from slurm.follow import Progress
from tools._path import ROOT
from tools.evidence.jobs import Job, Launch

ATTEMPTS = 3  # starts of a run's step in one call
POLL_SECONDS = {"local": 1.0, "slurm": 15.0}
STOP_SECONDS = 90  # for runs to save and leave
LOG = "experiment.log"  # in a run's folder: what its commands said


@dataclass
class Schedule:
    """`parallel`: commands at a time. After `run`, `given_up` tells why by name."""

    jobs: Sequence[Job]
    launch: Launch
    parallel: int
    environment: Mapping[str, str]
    running: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)  # runs at work that this call did not start
    attempts: dict[tuple[str, str], int] = field(default_factory=dict)  # starts by name and step
    given_up: dict[str, str] = field(default_factory=dict)

    def run(self) -> None:
        """Returns when nothing is left to do; whatever ends it, no local process stays behind."""
        progress = {job.name: Progress(job.folder / "metrics.json") for job in self.jobs}
        total = sum(job.max_iter for job in self.jobs)
        open_jobs = [job for job in self.jobs if job.next_step() is not None]
        try:
            screen = sys.stderr.isatty()  # a log file gets a line a minute
            every = 0.1 if screen else 60
            often = {"mininterval": every, "maxinterval": max(10, every)}
            with tqdm(total=total, unit="it", dynamic_ncols=True, smoothing=0.05, **often) as bar:
                bar.initial = bar.n = sum(one.done() for one in progress.values())
                while open_jobs:
                    open_jobs = [job for job in open_jobs if not self._is_over(job)]
                    done = len(self.jobs) - len(open_jobs) - len(self.given_up)
                    at_work = len(self.running) + len(self.elsewhere)
                    text = f"runs: {done} of {len(self.jobs)} done, {at_work} at work"
                    bar.set_postfix_str(text, refresh=screen)
                    bar.update(sum(one.done() for one in progress.values()) - bar.n)
                    if open_jobs:
                        time.sleep(POLL_SECONDS[self.launch.executor])
        finally:
            self._stop()

    def _is_over(self, job: Job) -> bool:
        """Take the job as far as it can go now; True when it is done or given up."""
        process = self.running.get(job.name)
        if process is not None and process.poll() is None:
            return False
        self.running.pop(job.name, None)
        self.elsewhere.discard(job.name)
        if job.runs_elsewhere():
            self.elsewhere.add(job.name)
            return False
        step = job.next_step()
        if step is None:
            return True
        why = self._why_not_again(job, step, process)
        if why is not None:
            self.given_up[job.name] = why
            return True
        if len(self.running) + len(self.elsewhere) < self.parallel and job.is_ready():
            self._start(job, step)
        return False

    def _why_not_again(self, job: Job, step: str, process: "subprocess.Popen[bytes] | None") -> str | None:
        """None when the step may be started. `process`: what has just ended, if anything."""
        if job.after is not None and job.after.name in self.given_up:
            return f"{job.after.name}, which it starts from, was given up"
        attempts = self.attempts.get((job.name, step), 0)
        if not attempts:
            return None
        said = last_line(job.folder / LOG)
        if attempts >= ATTEMPTS:
            return f"started {attempts} times and not finished: {said}"
        if process is not None:
            tqdm.write(
                f"{job.name}: {step} ended with code {process.returncode}: {said}; again", file=sys.stderr
            )
        return None

    def _start(self, job: Job, step: str) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        self.attempts[job.name, step] = self.attempts.get((job.name, step), 0) + 1
        with (job.folder / LOG).open("ab") as log:
            self.running[job.name] = subprocess.Popen(
                job.command(step, self.launch),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=dict(self.environment),
                start_new_session=True,  # stopped by `_stop`, all of it, and not by a Ctrl-C of its own
            )

    def _stop(self) -> None:
        """Ask what still runs on this machine to save and leave; Slurm's jobs stay."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(_has_members(process) for process in self.running.values()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.running.clear()


def _has_members(process: "subprocess.Popen[bytes]") -> bool:
    """Whether any process of its group is left."""
    process.poll()  # takes the leader's exit code, or it would stay as a zombie
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def last_line(log: Path) -> str:
    """The last line that a command wrote which is no progress bar."""
    if not log.is_file():
        return "no output"
    text = log.read_bytes()[-20_000:].decode(errors="replace").replace("\r", "\n")
    lines = [
        line.strip()
        for line in text.splitlines()
        if line.strip() and "it/s" not in line and "s/it" not in line
    ]
    errors = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return (errors or lines or ["no output"])[-1]
