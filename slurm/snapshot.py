"""A copy of the code as it was submitted: a job that waits, or comes back, runs this and nothing newer.

    code/HASH/                     configs, mask_former, pisr_maskformer, slurm, tools
    code/HASH/.revision.json       what git says of it: revision, branch, reason
    code/HASH/.revision.patch      uncommitted changes

Copies are named by their content: the same code is copied once, and a copy that a job may still use never
changes.
"""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from mask_former.errors import InputError
from mask_former.training.git_state import CODE, PATCH_FILE, REVISION_FILE, git_state

FOLDERS = ("configs", "mask_former", "pisr_maskformer", "slurm", "tools")
LEFT_OUT = {"__pycache__", ".git"}


def code_files(root: Path = CODE) -> list[str]:
    """Paths of the code's files, relative to `root`: those that git tracks or does not ignore, else all."""
    command = [
        "git",
        "-C",
        str(root),
        "ls-files",
        "-z",
        "--cached",
        "--others",
        "--exclude-standard",
        *FOLDERS,
    ]
    try:
        listed = subprocess.run(command, capture_output=True, timeout=60)
        names = [os.fsdecode(name) for name in listed.stdout.split(b"\0") if name]
        is_checkout = listed.returncode == 0 and "mask_former/__init__.py" in names
    except (OSError, subprocess.TimeoutExpired):
        is_checkout = False
    if not is_checkout:
        paths = (path for folder in FOLDERS for path in (root / folder).rglob("*"))
        names = [str(path.relative_to(root)) for path in paths]
    names = [name for name in set(names) if not LEFT_OUT & set(Path(name).parts)]
    return sorted(name for name in names if (root / name).is_file())


def snapshot_name(root: Path = CODE) -> str:
    """The hash that names a copy of the code as it is now."""
    digest = hashlib.sha256()
    for name in code_files(root):
        content = (root / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def take_snapshot(folder: Path, root: Path = CODE) -> Path:
    """Copy the code into folder/HASH, unless it is there; returns the copy's folder."""
    copy = folder / snapshot_name(root)
    if copy.exists():
        return copy
    unfinished = folder / f".{copy.name}.{os.getpid()}"
    try:
        for name in code_files(root):
            (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, unfinished / name)
        _record_revision(unfinished, root)
        unfinished.rename(copy)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if copy.exists():  # another submission was faster
            return copy
        raise InputError(
            f"cannot copy the code to {folder}: {error.strerror}; make room, or choose another --run-dir"
        ) from error
    return copy


def _record_revision(copy: Path, root: Path) -> None:
    state = git_state(root)
    said = {"revision": state.revision, "branch": state.branch, "reason": state.reason}
    (copy / REVISION_FILE).write_text(json.dumps(said) + "\n")
    if state.patch is not None:
        (copy / PATCH_FILE).write_bytes(state.patch)
