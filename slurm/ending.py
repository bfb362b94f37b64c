"""A job that is told to end: what Slurm says of it, and having it started again."""

import subprocess
import time
from collections.abc import Mapping
from datetime import datetime, timedelta

from slurm.cluster import ask, job_state, records

SCONTROL_TRIES = 3
EARLY = timedelta(seconds=60)  # that Slurm may signal before the time asked for


def state_of(job: str, grace: float) -> tuple[str | None, bool]:
    """Slurm's word for the job's state, None without an answer; whether Slurm is about to end it."""
    plain_times = ("env", "-u", "SLURM_TIME_FORMAT")
    found = records(ask(*plain_times, "scontrol", "-o", "show", "job", job))
    if found:
        return found[-1].get("JobState"), is_ending(found[-1], grace)
    return job_state(job), False


def is_ending(job: Mapping[str, str], grace: float) -> bool:
    """Whether a job, as scontrol shows it, is being preempted or is within `grace` seconds of its limit."""
    if _time(job.get("PreemptTime")):
        return True
    end = _time(job.get("EndTime"))
    return end is not None and end - datetime.now() <= timedelta(seconds=grace) + EARLY


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text or "")
    except ValueError:  # None, Unknown, N/A
        return None


def requeue(job: str) -> None:
    for _ in range(SCONTROL_TRIES):
        try:
            answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if answer.returncode == 0:
                return
            reason = " ".join(answer.stderr.split())
        time.sleep(2.0)
    raise RuntimeError(f"scontrol requeue {job} failed: {reason}; do it by hand, the run is saved")
