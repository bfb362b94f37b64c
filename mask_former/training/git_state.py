"""The revision of the code that runs, and a patch that makes the running code from it."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

CODE = Path(__file__).resolve().parents[2]  # the folder that holds mask_former/

# In a copy of the code that a job runs (slurm/snapshot.py): what git said of the original.
REVISION_FILE, PATCH_FILE = ".revision.json", ".revision.patch"

GIT_SECONDS = 20.0
MAX_UNTRACKED_FILE = 1_000_000  # bytes
MAX_UNTRACKED_FILES = 1000
MAX_PATCH = 20_000_000  # bytes
# A caller that is itself run by git (a hook) has these set, and they would lead to its repository.
LOCAL_VARIABLES = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR"}


class GitError(Exception):
    """Why git gave no answer, in one line."""


@dataclass(frozen=True)
class GitState:
    """A checkout. `reason` says in one line why `revision`, or only `patch`, is None."""

    revision: str | None = None
    branch: str | None = None  # None also for a detached head
    patch: bytes | None = None  # `git apply` makes the checkout from the revision; empty when it is clean
    reason: str | None = None

    @property
    def dirty(self) -> bool | None:
        return None if self.patch is None else bool(self.patch)


def git_state(code: Path = CODE, output_marker: str = "run.lock") -> GitState:
    """The state of the checkout that tracks the package in the folder `code`, wherever the caller stands.

    The patch holds `git diff HEAD` and the untracked text files that git does not ignore, apart from job
    logs, hidden files, and what lies below folders with a file named `output_marker`: runs write those.
    A copy of the code tells of its original.
    """
    if (code / REVISION_FILE).exists():
        return _recorded(code)
    try:
        # An installed copy may lie in a folder of another project's checkout: that is not its revision.
        _git(code, "ls-files", "--error-unmatch", "mask_former/__init__.py")
        answer = _git(code, "rev-parse", "--show-toplevel", "HEAD", "--abbrev-ref", "HEAD")
        top, revision, branch = os.fsdecode(answer).splitlines()
    except (GitError, ValueError, OSError) as error:  # OSError: no room for git's messages in /tmp
        return GitState(reason=str(error))
    named = None if branch == "HEAD" else branch
    try:
        patch = _tracked_changes(Path(top))
        patch += _untracked_files(Path(top), output_marker)
    except (GitError, OSError) as error:
        return GitState(revision, named, reason=str(error))
    if len(patch) > MAX_PATCH:
        patch = patch[:MAX_PATCH] + b"\n# cut short here: the whole is larger than %d bytes\n" % MAX_PATCH
    return GitState(revision, named, patch)


def _recorded(code: Path) -> GitState:
    try:
        said = json.loads((code / REVISION_FILE).read_bytes())
        patch = (code / PATCH_FILE).read_bytes() if (code / PATCH_FILE).exists() else None
        return GitState(said["revision"], said["branch"], patch, said["reason"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        return GitState(reason=f"{code / REVISION_FILE} cannot be read: {error}")


def _tracked_changes(top: Path) -> bytes:
    """Independent of the user's settings for diffs, so that equal changes give equal bytes."""
    plain = ("--no-ext-diff", "--no-textconv", "--no-color", "--src-prefix=a/", "--dst-prefix=b/")
    return _git(top, "diff", "HEAD", "--binary", "--full-index", *plain)


def _untracked_files(top: Path, output_marker: str) -> bytes:
    listing = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
    names = sorted(os.fsdecode(name) for name in listing.split(b"\0") if name)
    outputs = tuple(name[: -len(output_marker)] for name in names if name.endswith(f"/{output_marker}"))
    names = [name for name in names if not (name.startswith(outputs) or _is_no_code(name))]
    parts = [_untracked_file(top, name) for name in names[:MAX_UNTRACKED_FILES]]
    if len(names) > MAX_UNTRACKED_FILES:
        parts.append(b"# untracked and not here: %d more files\n" % (len(names) - MAX_UNTRACKED_FILES))
    return b"".join(parts)


def _is_no_code(name: str) -> bool:
    """Job logs grow beside the code and say nothing of it; hidden files are an editor's, or hold secrets."""
    return name.endswith((".out", ".err", ".log")) or "/." in f"/{name}"


def _untracked_file(top: Path, name: str) -> bytes:
    """The file as git writes a new one into a patch, or a line that names it when it is no short text."""
    quoted = _quoted("b/" + name)
    left_out = b"# untracked and not here (no text, or large): %s\n" % quoted
    try:
        status = os.lstat(top / name)
        if not stat.S_ISREG(status.st_mode) or status.st_size >= MAX_UNTRACKED_FILE:
            return left_out
        content = (top / name).read_bytes()
    except OSError:
        return left_out
    if b"\0" in content:
        return left_out
    mode = b"100755" if status.st_mode & stat.S_IXUSR else b"100644"
    head = b"diff --git %s %s\nnew file mode %s\n" % (_quoted("a/" + name), quoted, mode)
    if not content:
        return head + b"index %s..%s\n" % (b"0" * 40, b"e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    lines = content.split(b"\n")
    unended = lines.pop()
    body = [b"+" + line + b"\n" for line in lines]
    if unended:
        body.append(b"+" + unended + b"\n\\ No newline at end of file\n")
    hunk = b"--- /dev/null\n+++ %s\n@@ -0,0 +1,%d @@\n" % (quoted, len(body))
    return head + hunk + b"".join(body)


def _quoted(path: str) -> bytes:
    """A path as patches write it: in quotes, with octal bytes, when it holds what would be misread."""
    raw = os.fsencode(path)
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in raw):
        return raw
    return b'"%s"' % b"".join(
        b"%c" % byte if 32 <= byte < 127 and byte not in b'"\\' else b"\\%03o" % byte for byte in raw
    )


def _git(folder: Path, *arguments: str) -> bytes:
    """What git prints, MAX_PATCH + 1 bytes at most. GitError: it fails, is missing or takes too long."""
    environment = {key: value for key, value in os.environ.items() if key not in LOCAL_VARIABLES}
    environment |= {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                ["git", "-C", str(folder), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # so that what git started ends with it
            )
        except OSError as error:
            raise GitError(f"git cannot be run: {error.strerror}") from error
        expired = threading.Event()
        timer = threading.Timer(GIT_SECONDS, _expire, (process, expired))
        timer.start()
        try:
            with process:
                assert process.stdout is not None
                output = process.stdout.read(MAX_PATCH + 1)
                cut = len(output) > MAX_PATCH
                if cut:
                    _end(process)
        finally:
            timer.cancel()
        errors.seek(0)
        lines = errors.read(10_000).decode(errors="replace").splitlines()
    if expired.is_set():
        raise GitError(f"git {arguments[0]} took longer than {GIT_SECONDS:g} s")
    if process.returncode and not cut:
        raise GitError(f"git {arguments[0]}: {lines[0] if lines else f'exit code {process.returncode}'}")
    return output


def _expire(process: "subprocess.Popen[bytes]", expired: threading.Event) -> None:
    expired.set()
    _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
