"""Which copy of a job may write to a run's folder, when the scheduler has started another.

A node that no longer answers is given up and its job started elsewhere, while the old copy may still run and
write. So run.lease names the newest copy:

    {"token", "job", "restart", "host", "pid", "since"}

A later restart of the same job writes its own name there, waits until the old copy has let go of the folder
(run_lock.py) and, on another host, has said so, and goes on. The old copy looks before it writes a checkpoint
or a row, and every few seconds; when it finds another name, it ends and writes nothing more. Any other run is
refused as long as the folder is locked. A run without a job has no lease, and removes one that it finds.
"""

import json
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError
from mask_former.training.run_lock import cannot_write, empty, locked, now

logger = logging.getLogger(__name__)

LEASE_FILE = "run.lease"
WATCH_SECONDS = 2.0
PATIENCE = 10.0  # seconds, for a holder that is none of this job
# For this job's old copy: longer than a network file system hides a new lease from it (60 s mostly).
OLD_COPY_PATIENCE = 120.0
TAKEN_OVER = 3  # exit code of a copy that ends by itself


class LeaseLost(InputError):
    """Another copy of this job owns the run now."""


@dataclass(frozen=True)
class Claim:
    """A copy of a job: its id, and how often the scheduler has restarted it."""

    job: str
    restart: int


@dataclass(frozen=True)
class Lease:
    """What run.lease says."""

    token: str
    job: str
    restart: int
    host: str
    pid: int
    since: str


def read_lease(folder: str | Path) -> Lease | None:
    """The folder's lease; None when there is none, or none that can be read."""
    try:
        return Lease(**json.loads((Path(folder) / LEASE_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


class Fence:
    """Called before each write: raises LeaseLost when another copy owns the run."""

    def __init__(self, folder: Path, lease: Lease) -> None:
        self.folder = folder
        self.lease = lease

    def __call__(self) -> None:
        owner = read_lease(self.folder)
        if owner is None or owner.token != self.lease.token:
            raise LeaseLost(self._reason(owner))

    def _reason(self, owner: Lease | None) -> str:
        mine = f"restart {self.lease.restart} of job {self.lease.job}"
        if owner is None:
            return f"{self.folder / LEASE_FILE} is gone: {mine} ends and writes nothing more"
        return (
            f"{self.folder} belongs to restart {owner.restart} of job {owner.job} on {owner.host} now: "
            f"{mine} ends and writes nothing more"
        )


@contextmanager
def owned(
    folder: str | Path, claim: Claim | None = None, patience: float = OLD_COPY_PATIENCE
) -> Iterator[Callable[[], None]]:
    """Be the only run that writes to `folder`; gives the fence to call before each write.

    For a run's main process. `claim`: the job's copy that this is, None for a run without a job. `patience`:
    seconds for an old copy of this job. InputError, naming the holder, when another run is there.
    """
    folder = Path(folder)
    if claim is None:
        with locked(folder, PATIENCE):
            (folder / LEASE_FILE).unlink(missing_ok=True)
            yield nothing_to_lose
        return
    before = read_lease(folder)
    if before and before.job == claim.job and before.restart < claim.restart:
        logger.warning("taking the run over from restart %d on host %s", before.restart, before.host)
        fence = _write_lease(folder, claim)
        with (
            locked(folder, patience, lambda holder: _is_earlier(holder, claim), asdict(claim)),
            _watched(fence),
        ):
            yield fence
    else:
        with locked(folder, PATIENCE, note=asdict(claim)):
            fence = _write_lease(folder, claim)
            with _watched(fence):
                yield fence


def nothing_to_lose() -> None:
    """The fence of a run without a job: nobody takes it over."""


def _is_earlier(holder: dict[str, Any], claim: Claim) -> bool:
    """Whether the lock is held by an earlier copy of the job, the last one or, if that was killed while it
    waited, one before it.
    """
    restart = holder.get("restart")
    return holder.get("job") == claim.job and isinstance(restart, int) and restart < claim.restart


def _write_lease(folder: Path, claim: Claim) -> Fence:
    lease = Lease(secrets.token_hex(8), claim.job, claim.restart, socket.gethostname(), os.getpid(), now())
    try:
        with replace_file(folder / LEASE_FILE, durable=True) as file:
            file.write(json.dumps(asdict(lease)).encode() + b"\n")
    except OSError as error:
        raise InputError(cannot_write(folder, error)) from error
    return Fence(folder, lease)


@contextmanager
def _watched(fence: Fence) -> Iterator[None]:
    """The process ends within seconds of losing its lease, wherever it is: in an evaluation, say, or for
    ever in an exchange with a process of a node that is down.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(fence, over), name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(fence: Fence, over: threading.Event) -> None:
    while not over.wait(WATCH_SECONDS):
        try:
            fence()
        except LeaseLost as lost:
            _end(lost, fence.folder)


def _end(lost: LeaseLost, folder: Path) -> NoReturn:
    print(f"error: {lost}", file=sys.stderr, flush=True)
    empty(folder)  # the new copy may wait for that
    os._exit(TAKEN_OVER)
