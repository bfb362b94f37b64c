"""Files that appear whole or not at all: a reader, or a run that is stopped, never meets half of one."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

UNFINISHED = ".unfinished-"  # in the name of a file that is being written
LEFTOVER = re.compile(rf"\..+{UNFINISHED}\w+")


@contextmanager
def replace_file(path: str | Path, durable: bool = False) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` at the end; its folder must be there.

    When the body raises, nothing is left behind and what stood at `path` stays. With `durable` it is on the
    disk, not only on its way there, before it takes the place: a power cut leaves the old or the new one.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}{UNFINISHED}")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    if durable:
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring the folder's list of names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_leftovers(folder: str | Path) -> int:
    """Remove what killed processes left of files they were writing in `folder`; returns how many.

    Only for the one process that writes there: another's unfinished files would be removed too.
    """
    leftovers = [path for path in Path(folder).iterdir() if LEFTOVER.fullmatch(path.name)]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)
