"""One run at a time in a folder, tried with real processes, kills and forks."""

import errno
import fcntl
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mask_former.errors import InputError
from mask_former.training import run_lock
from mask_former.training.run_lock import LOCK_FILE, locked

ROOT = Path(__file__).resolve().parent.parent
HOLD = """
import os, sys, time
from mask_former.training.run_lock import locked
with locked(sys.argv[1]):
    {body}
"""


@contextmanager
def holder(folder: Path, body: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """A process that runs `body` while it holds `folder`, and the line that it printed."""
    command = [sys.executable, "-c", HOLD.format(body=body), str(folder)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_another_process_is_refused_in_one_line_that_names_the_holder(tmp_path):
    folder = tmp_path / "not" / "yet"
    with holder(folder, "print('held', flush=True); time.sleep(60)") as (process, said):
        assert said == "held"
        with pytest.raises(InputError) as refused, locked(folder, patience=0):
            pytest.fail("two runs write to one folder")
        message = str(refused.value)
        assert message.startswith(f"OUTPUT_DIR {folder} is being written by pid {process.pid} on host ")
        assert socket.gethostname() in message and "choose another OUTPUT_DIR" in message
        assert "\n" not in message
        # The refused one has read the file and closed it, and the holder still holds.
        with pytest.raises(InputError), locked(folder, patience=0):
            pytest.fail("two runs write to one folder")


def test_a_killed_holder_blocks_nothing_though_its_worker_lives_on(tmp_path):
    """A forked data-loader worker outlives its trainer; the dead trainer's file still names it."""
    body = (
        "worker = os.fork()\n"
        "    if worker == 0: time.sleep(60); os._exit(0)\n"
        "    print(worker, flush=True); time.sleep(60)"
    )
    with holder(tmp_path, body) as (process, worker):
        try:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            os.kill(int(worker), 0)  # raises when it is gone
            assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == process.pid
            with locked(tmp_path, patience=0):
                assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
        finally:
            os.kill(int(worker), signal.SIGKILL)


def test_a_forked_child_that_leaves_does_not_release(tmp_path):
    """The child unwinds through the with statement: closes the file, and must not empty it."""
    body = (
        "child = os.fork()\n"
        "    if child == 0: sys.exit(7)\n"
        "    print(os.waitpid(child, 0)[1] >> 8, flush=True); time.sleep(60)"
    )
    with holder(tmp_path, body) as (process, said):
        assert said == "7"
        with pytest.raises(InputError, match=f"by pid {process.pid} on"), locked(tmp_path, patience=0):
            pytest.fail("the child released its parent's lock")


def test_a_holder_that_ends_soon_is_waited_for(tmp_path, caplog):
    with holder(tmp_path, "print('held', flush=True); time.sleep(1)") as (_, said):
        assert said == "held"
        with caplog.at_level(logging.INFO), locked(tmp_path, patience=30):
            pass
    assert sum("waiting for its end" in record.message for record in caplog.records) == 1


def test_within_one_process_runs_follow_each_other_but_never_overlap(tmp_path):
    alias = tmp_path / "alias"
    folder = tmp_path / "run"
    alias.symlink_to(folder)
    with locked(folder):
        start = time.monotonic()
        with pytest.raises(InputError, match=f"by pid {os.getpid()} itself, in another run"), locked(alias):
            pytest.fail("two runs of one process write to one folder")
        assert time.monotonic() - start < 5  # no patience with oneself
        with locked(tmp_path / "other"):
            pass
    assert (folder / LOCK_FILE).read_bytes() == b""
    with pytest.raises(RuntimeError), locked(folder):
        raise RuntimeError
    with locked(alias):
        pass


def test_a_refusal_leaves_the_first_run_of_the_process_its_lock(tmp_path):
    """Closing any descriptor of the file would drop it, so a refusal must not even open it."""
    attempt = "with locked(sys.argv[1], patience=0): pass"  # prints a traceback with the refusal
    code = f"import sys\nfrom mask_former.training.run_lock import locked\n{attempt}"
    with locked(tmp_path):
        with pytest.raises(InputError), locked(tmp_path):
            pytest.fail("two runs of one process write to one folder")
        tried = subprocess.run(
            [sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True
        )
    assert tried.returncode == 1
    assert f"is being written by pid {os.getpid()} on host" in tried.stderr


def test_a_lock_file_removed_meanwhile_is_made_anew(tmp_path, monkeypatch):
    """Between opening and locking it: a lock on a file that is no longer there would exclude nobody."""
    lock, removed = run_lock._lock, []

    def remove_first(handle, path):
        if not removed:
            path.unlink()
            removed.append(path)
        return lock(handle, path)

    monkeypatch.setattr(run_lock, "_lock", remove_first)
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert removed


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, code):
    def lockf(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    with locked(tmp_path):
        pass
    [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "no locks" in record.message and "\n" not in record.message


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    refusal = r"cannot write to OUTPUT_DIR .*Not a directory; choose another"
    with pytest.raises(InputError, match=refusal), locked(tmp_path / "file" / "run"):
        pytest.fail("not a folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without rights")
def test_a_read_only_folder_is_one_line():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.seteuid(65534)
        try:
            with pytest.raises(InputError, match="Permission denied; choose another"), locked(folder):
                pytest.fail("not writable")
        finally:
            os.seteuid(0)


def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    def pwrite(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(InputError, match="No space left on device"), locked(tmp_path):
        pytest.fail("nothing can be written")
    monkeypatch.undo()
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_holder_whose_file_says_nothing_is_another_process(tmp_path, content):
    (tmp_path / LOCK_FILE).write_text(content)
    assert run_lock._holder(tmp_path / LOCK_FILE) == "another process"
    assert run_lock._holder(tmp_path / "missing") == "another process"


def test_a_lock_of_another_host_may_be_one_that_outlived_it(tmp_path):
    """As a server keeps it for a client that is down: told only where the holder is elsewhere."""
    body = "print('held', flush=True); time.sleep(60)"
    with holder(tmp_path, body):
        said = json.loads((tmp_path / LOCK_FILE).read_text()) | {"host": "node9"}
        with open(tmp_path / LOCK_FILE, "w") as file:
            json.dump(said, file)
        with pytest.raises(InputError) as refused, locked(tmp_path, patience=0):
            pytest.fail("two runs write to one folder")
    assert str(refused.value).endswith(f"(if node9 is down for good, {tmp_path / LOCK_FILE} may be removed)")


@pytest.mark.parametrize(
    ("changed", "is_old", "waits"),
    [({}, True, True), ({"host": socket.gethostname()}, True, False), ({}, False, False)],
)
def test_an_old_copy_on_another_host_is_given_time_to_say_that_it_has_ended(
    tmp_path, monkeypatch, caplog, changed, is_old, waits
):
    """Locks may not reach across hosts. Here they do, and so do they for whatever no old copy has left."""
    caplog.set_level(logging.INFO)
    path = tmp_path / LOCK_FILE
    for says in (True, False):  # that it has ended, after half a second; nothing
        silence = 1.5 if waits and not says else 60.0
        monkeypatch.setattr(run_lock, "SILENCE_SECONDS", silence)
        path.write_text(json.dumps({"pid": 5, "host": "node9"} | changed))
        timer = threading.Timer(0.5, lambda: os.truncate(path, 0) if says else None)  # noqa: B023
        timer.start()
        start = time.monotonic()
        with locked(tmp_path, may_break=lambda said: is_old and said.get("pid") == 5):
            assert json.loads(path.read_text())["pid"] == os.getpid()
            seconds = time.monotonic() - start
        timer.join()
        assert silence <= seconds if silence < 60 else seconds < 30
    said = [record.getMessage() for record in caplog.records]
    assert sum("still names pid 5 on host node9: waiting " in line for line in said) == 2 * waits
    assert sum("going on all the same" in line for line in said) == waits


def test_a_process_empties_the_text_that_names_it_alone(tmp_path):
    path = tmp_path / LOCK_FILE
    run_lock.empty(tmp_path)  # holds nothing
    with locked(tmp_path):
        mine = path.read_text()
        with open(path, "r+") as file:  # of a new copy, where locks do not reach across hosts
            file.write(mine.replace(socket.gethostname(), "x" * len(socket.gethostname())))
        run_lock.empty(tmp_path)
        assert path.read_text()
    assert path.read_text()
    with locked(tmp_path):
        run_lock.empty(tmp_path)
        assert path.read_text() == ""
