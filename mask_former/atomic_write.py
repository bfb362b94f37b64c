"""Files that appear whole or not at all: a reader, or a run that is stopped, never meets half of one."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replace_file(path: str | Path) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` at the end; its folder must be there.

    When the body raises, nothing is left behind and what stood at `path` stays.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
