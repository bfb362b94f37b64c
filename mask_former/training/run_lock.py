"""One run at a time writes to a folder: a lock that dies with its process."""

import errno
import fcntl
import getpass
import json
import logging
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mask_former.errors import InputError

logger = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
POLL_SECONDS = 0.2
LONGEST_TEXT = 2**16  # of a lock file
# For an old copy elsewhere: longer than a network file system hides a new lease from it (60 s mostly).
SILENCE_SECONDS = 75.0
_held: dict[str, int] = {}  # folder -> process that holds it; a forked child finds its parent's entries here
_handles: dict[str, int] = {}  # folder -> descriptor of its locked lock file
_held_guard = threading.Lock()


@contextmanager
def locked(
    folder: str | Path,
    patience: float = 10.0,
    may_break: Callable[[dict[str, Any]], bool] | None = None,
    note: Mapping[str, Any] | None = None,
) -> Iterator[None]:
    """Be the only run that writes to `folder`, which is made if need be; for a run's main process only.

    InputError names the holder when another run, of this process or any other, is there; one that is just
    dying is given `patience` seconds. The lock dies with its process, however that ends. Where the file
    system has no locks, a warning is all. `may_break`: given what the lock file says of its holder, whether
    the lock is taken from it when `patience` is over, in place of an error (lease.py knows when). `note`:
    more that the lock file says of this holder, for such a question.

    It is a POSIX record lock: forked data-loader workers, which may outlive a killed trainer, do not inherit
    it, and NFS knows it. Its price: it is lost when this process closes any other descriptor of run.lock.
    """
    folder = Path(folder)
    key = os.path.realpath(folder)
    with _held_guard:
        if _held.get(key) == os.getpid():  # a process's own locks never exclude it
            raise InputError(refusal(folder, f"pid {os.getpid()} itself, in another run"))
        _held[key] = owner = os.getpid()
    try:
        handle = _handles[key] = _open_locked(folder, patience, may_break, note or {})
        try:
            yield
        finally:
            if os.getpid() == owner:  # a forked child that leaves the body says nothing for its parent
                empty(folder)
            del _handles[key]
            os.close(handle)
    finally:
        with _held_guard:
            _held.pop(key, None)


def empty(folder: str | Path) -> None:
    """Say in the lock file that this process, which holds it, writes no more; for one that ends at once, too.

    Nothing happens when it holds none, or the file names another process, as it may where locks do not reach
    across hosts. Closing the file is what frees the folder; the text is all that such a file system tells.
    """
    handle = _handles.get(os.path.realpath(folder))
    if handle is None:
        return
    with suppress(OSError):
        if _is_this_process(_said(os.pread(handle, LONGEST_TEXT, 0))):
            os.ftruncate(handle, 0)


def refusal(folder: Path, holder: str, called: str = "OUTPUT_DIR") -> str:
    """`called`: what the folder is to whoever reads the line."""
    return f"{called} {folder} is being written by {holder}; wait for it, stop it, or choose another {called}"


def refusal_by(folder: Path, called: str = "OUTPUT_DIR") -> str:
    """By whom the lock file names; a network's lock may outlive a host that is down."""
    path = folder / LOCK_FILE
    host = _named(path).get("host")
    down = f" (if {host} is down for good, {path} may be removed)"
    return refusal(folder, _holder(path), called) + (down if host and host != socket.gethostname() else "")


def cannot_write(folder: Path, error: OSError) -> str:
    return (
        f"cannot write to OUTPUT_DIR {folder}: {error.strerror}; "
        "choose another OUTPUT_DIR, or mend its rights"
    )


def _open_locked(
    folder: Path,
    patience: float,
    may_break: Callable[[dict[str, Any]], bool] | None,
    note: Mapping[str, Any],
) -> int:
    """Descriptor of the locked lock file, which names this process."""
    path = folder / LOCK_FILE
    deadline = time.monotonic() + patience
    waiting = False
    while True:
        handle = _open(path)
        try:
            if _lock(handle, path):
                if _is_at(handle, path):
                    if may_break is not None:
                        _wait_for_silence(handle, path, may_break)
                    _write_holder(handle, folder, note)
                    return handle
            elif time.monotonic() >= deadline:
                if may_break is None or not may_break(_named(path)):
                    raise InputError(refusal_by(folder))
                logger.warning("%s is taken from %s, which has not let go of it", path, _holder(path))
                path.unlink(missing_ok=True)  # its lock is one on a file without a name now
            elif not waiting:
                logger.info("OUTPUT_DIR %s is held by %s: waiting for its end", folder, _holder(path))
                waiting = True
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        time.sleep(POLL_SECONDS)


def _wait_for_silence(handle: int, path: Path, is_old: Callable[[dict[str, Any]], bool]) -> None:
    """Until an old copy on another host says that it writes no more, SILENCE_SECONDS at most.

    Where locks do not reach across hosts (NFS or Lustre mounted so), having the lock does not tell that. On
    this host it does. A copy that was killed has said nothing, and is waited for in vain.
    """
    deadline = time.monotonic() + SILENCE_SECONDS
    waiting = False
    while time.monotonic() < deadline:
        holder = _said(os.pread(handle, LONGEST_TEXT, 0))  # not by its path: closing that would drop the lock
        if not is_old(holder) or holder.get("host") == socket.gethostname():
            return
        if not waiting:
            logger.warning(  # seen before there is a log, too
                "%s still names pid %s on host %s: waiting %g s at most for it to say that it has ended",
                path,
                holder.get("pid"),
                holder.get("host"),
                SILENCE_SECONDS,
            )
            waiting = True
        time.sleep(POLL_SECONDS)
    logger.warning("%s: going on all the same; that one was killed, most likely", path)


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(cannot_write(path.parent, error)) from error


def _lock(handle: int, path: Path) -> bool:
    """False when another process holds it; True, with a warning, where nobody can."""
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in NO_LOCKS_HERE:
            raise
        logger.warning(
            "%s: the file system has no locks (%s); see to it that one run at a time writes here",
            path,
            error.strerror,
        )
    return True


def _is_at(handle: int, path: Path) -> bool:
    """False when the file was removed since it was opened: a lock on it would exclude nobody."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False


def _write_holder(handle: int, folder: Path, note: Mapping[str, Any]) -> None:
    holder = {
        **note,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "user": user_name(),
        "since": now(),
        "command": shlex.join(sys.argv),
    }
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, (json.dumps(holder) + "\n").encode(), 0)
    except OSError as error:  # a full disk, most likely
        raise InputError(cannot_write(folder, error)) from error


def _holder(path: Path) -> str:
    """Who the lock file names; it may be empty, or half written just now."""
    holder = _named(path)
    try:
        return f"pid {holder['pid']} on host {holder['host']} since {holder['since']} (user {holder['user']})"
    except KeyError:
        return "another process"


def _named(path: Path) -> dict[str, Any]:
    try:
        return _said(path.read_bytes())
    except OSError:
        return {}


def _said(text: bytes) -> dict[str, Any]:
    try:
        holder = json.loads(text)
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _is_this_process(holder: Mapping[str, Any]) -> bool:
    return (holder.get("pid"), holder.get("host")) == (os.getpid(), socket.gethostname())


def user_name() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
