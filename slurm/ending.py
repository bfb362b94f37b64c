"""A job that is told to end: what Slurm says of it, and having it started again.

A process leaves a wish beside the logs before it asks Slurm, and takes it back when Slurm has done it. The
batch script, which runs outside the job's container, looks for it after srun and requeues the job then:

    slurm/JOB_RESTART_requeue

So a process that cannot reach Slurm, or is ended while it waits for an answer, has its job requeued too. A
second requeue does no harm: Slurm refuses it, and a wish counts for its own start alone.
"""

import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from slurm.cluster import accounted_state, ask, records

if TYPE_CHECKING:
    from slurm.place import Place

SCONTROL_TRIES = 3
TRY_SECONDS = 15.0  # for an answer of scontrol: the grace must hold all tries
EARLY = timedelta(seconds=60)  # that Slurm may signal before the time asked for
BROKEN = re.compile(  # what gloo and NCCL say when a peer has gone
    r"\bgloo\b|\bNCCL\b|connection (closed|reset|refused)|broken pipe|pair closure", re.IGNORECASE
)


def state_of(job: str, grace: float) -> tuple[str | None, bool]:
    """Slurm's word for the job's state, None without an answer; whether Slurm is about to end it."""
    found = _shown(job)
    if found:
        return found[-1].get("JobState"), is_ending(found[-1], grace)
    return accounted_state(job), False


def hears_nothing(job: str) -> str:
    """Told at a job's start: what this process cannot do where Slurm does not answer; "" where it does."""
    if _shown(job):
        return ""
    return (
        "Slurm does not answer here (a container without scontrol?): after SIGUSR2 the batch script requeues "
        "the job, but SIGTERM alone ends it; to mend that, give the container scontrol, slurm.conf and "
        "munge's socket"
    )


def _shown(job: str) -> list[dict[str, str]]:
    return records(ask("env", "-u", "SLURM_TIME_FORMAT", "scontrol", "-o", "show", "job", job))


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


def requeue(job: str) -> bool:
    """Have Slurm start the job again; False when only the wish is there, which the batch script finds.

    RuntimeError when neither can be had.
    """
    wished, reason = _wish(), ""
    command = ["scontrol", "requeue", job]
    for _ in range(SCONTROL_TRIES):
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=TRY_SECONDS)
        except FileNotFoundError:
            reason = "there is no scontrol here"
            break
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if answer.returncode == 0:
                if wished is not None:
                    with suppress(OSError):
                        wished.unlink()
                return True
            reason = " ".join(answer.stderr.split())
        time.sleep(2.0)
    if wished is None:
        raise RuntimeError(f"scontrol requeue {job} failed: {reason}; do it by hand, the run is saved")
    print(f"scontrol requeue {job} failed: {reason}; it is left to the batch script", flush=True)
    return False


def _wish() -> Path | None:
    """The wish, which is there now; None where it cannot be written."""
    try:
        file = wish_file()
        file.touch()
    except (KeyError, OSError):
        return None
    return file


def wish_file() -> Path:
    """Of this start of this job; KeyError outside a job of Slurm."""
    name = f"{os.environ['SLURM_JOB_ID']}_{os.environ.get('SLURM_RESTART_COUNT', 0)}_requeue"
    return Path(os.environ["SUBMITIT_FOLDER"]) / name


def granting_lines(logs: Path) -> list[str]:
    """Shell lines after srun: requeue the job if there is its wish; else its exit code stays.

    An array's task is named as such: the bare id of the one that was split off last is the whole array's.
    """
    return [
        "code=$?",
        f'wish={shlex.quote(str(logs))}/"${{SLURM_JOB_ID}}_${{SLURM_RESTART_COUNT:-0}}_requeue"',
        'if [ -e "$wish" ]; then',
        '  rm -f "$wish"',
        '  job="${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"',
        '  for pause in 2 5 0; do scontrol requeue "$job" && exit 0; sleep "$pause"; done',
        '  echo "error: the job is not requeued; do it by hand, the run is saved"',
        "  code=1",
        "fi",
        "exit $code",
    ]


def is_broken_exchange(error: Exception) -> bool:
    """Whether a peer has gone in an exchange: when an evaluation is given up, one leaves before another."""
    import torch
    import torch.distributed as dist

    if isinstance(error, torch.cuda.OutOfMemoryError) or not dist.is_initialized():
        return False
    broken = isinstance(error, RuntimeError) and BROKEN.search(str(error)) is not None
    return broken or isinstance(error, dist.DistError)


def leave_within(seconds: float, place: "Place") -> None:
    """End this process by force if it has not ended by then; its peers on this machine hear of it."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=end, name="leave", daemon=True).start()
    if place.cluster == "local" and place.size > 1:  # Slurm's srun does that by itself
        os.kill(os.getppid(), signal.SIGTERM)
