"""The schedule of an experiment: runs that break, wait, go on elsewhere, are interrupted; real processes."""

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tools.evidence import schedule as schedules
from tools.evidence.jobs import Launch
from tools.evidence.schedule import ATTEMPTS, Schedule, last_line


@dataclass
class Script:
    """A run whose training is a line of Python in a process of its own; it is done when it made a file."""

    name: str
    root: Path
    code: str
    max_iter: int = 1
    after: Path | None = None
    busy: list[str] = field(default_factory=list)  # answers of runs_elsewhere, first ones first

    @property
    def folder(self) -> Path:
        return self.root / self.name

    def next_step(self):
        return None if (self.folder / "done").exists() else "train"

    def is_ready(self):
        return self.after is None or (self.after / "done").exists()

    def runs_elsewhere(self):
        return self.busy.pop(0) if self.busy else None

    def command(self, step, launch):
        return [sys.executable, "-c", self.code.replace("HERE", str(self.folder))]


DONE = "open('HERE/done', 'w').close()"
TRY = "open('HERE/tries', 'a').write('x'); "


def schedule(monkeypatch, jobs, parallel=2) -> Schedule:
    monkeypatch.setitem(schedules.POLL_SECONDS, "local", 0.02)
    return Schedule(jobs, Launch("local", 0), parallel, os.environ)


def tries(job: Script) -> int:
    return len((job.folder / "tries").read_text()) if (job.folder / "tries").exists() else 0


def test_what_broke_is_started_again_and_what_goes_on_breaking_is_given_up(tmp_path, monkeypatch):
    once = TRY + "import sys; len(open('HERE/tries').read()) > 1 or sys.exit(3); " + DONE
    shaky, ever = Script("shaky", tmp_path, once), Script("ever", tmp_path, TRY + "raise OSError('no luck')")
    idle = Script("idle", tmp_path, TRY)  # says that all went well, and did nothing
    built_on = Script("built_on", tmp_path, DONE, after=ever.folder)
    done = Script("done", tmp_path, TRY + DONE)
    done.folder.mkdir()
    (done.folder / "done").touch()
    one = schedule(monkeypatch, [built_on, shaky, ever, idle, done])
    one.run()
    assert (tries(shaky), tries(ever), tries(idle), tries(done)) == (2, ATTEMPTS, ATTEMPTS, 0)
    assert set(one.given_up) == {"ever", "idle", "built_on"}
    assert (
        "OSError: no luck" in one.given_up["ever"]
        and "ever, which it starts from" in one.given_up["built_on"]
    )


def test_so_many_at_a_time_and_in_the_order_of_what_they_need(tmp_path, monkeypatch):
    clock = (
        "import time; a = time.time(); time.sleep(0.3); open('HERE/times', 'w').write(f'{a} {time.time()}'); "
    )
    first = Script("first", tmp_path, clock + DONE)
    jobs = [Script("last", tmp_path, clock + DONE, after=first.folder), first]
    jobs += [Script(f"other{number}", tmp_path, clock + DONE) for number in range(3)]
    schedule(monkeypatch, jobs).run()
    times = {job.name: [float(t) for t in (job.folder / "times").read_text().split()] for job in jobs}
    assert times["last"][0] > times["first"][1]
    for start, _ in times.values():
        assert sum(a <= start < b for a, b in times.values()) <= 2


def test_a_run_that_goes_on_elsewhere_is_waited_for(tmp_path, monkeypatch):
    """It counts as one at work, and is not started a second time."""
    job = Script("busy", tmp_path, TRY + DONE, busy=["running"] * 5)
    other = Script("other", tmp_path, TRY + DONE)
    one = schedule(monkeypatch, [job, other], parallel=1)
    assert not one._is_over(job) and not one._is_over(other)
    assert one.elsewhere == {"busy"} and not one.running
    one.run()
    assert tries(job) == tries(other) == 1


def test_nothing_stays_behind_when_it_is_interrupted(tmp_path, monkeypatch):
    """Not even what a command has started, which saves first.

    It sleeps in short pieces: a long sleep does not see a signal that came just before it.
    """
    saving = (
        "import signal, sys, time; "
        "signal.signal(signal.SIGTERM, lambda *_: (open('HERE/saved', 'w').close(), sys.exit(1))); "
        "open('HERE/ready', 'w').close(); [time.sleep(0.1) for _ in range(600)]"
    )
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {saving!r}])"
    job = Script("long", tmp_path, outer)
    one = schedule(monkeypatch, [job])

    def interrupt(seconds: float) -> None:
        if (job.folder / "ready").exists():
            raise KeyboardInterrupt
        real_sleep(0.02)

    real_sleep = time.sleep
    monkeypatch.setattr(schedules.time, "sleep", interrupt)
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(one, "_stop", lambda stop=one._stop: (monkeypatch.undo(), stop()))
        one.run()
    assert (job.folder / "saved").exists() and time.monotonic() - started < 40


def test_the_last_line_of_a_log_is_what_went_wrong(tmp_path):
    log = tmp_path / "log"
    assert last_line(log) == "no output"
    log.write_text(
        "training\n 10%|# | 1/9 [00:01, 1.0it/s]\rerror: no such file\n 20%|## | 2/9 [00:02, 1.0s/it]\n"
    )
    assert last_line(log) == "error: no such file"
