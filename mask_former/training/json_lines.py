"""A row of numbers a line: metrics.json, appended while a run goes on and cut back when it is resumed."""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from mask_former.atomic_write import replace_file
from mask_former.evaluation.metrics_file import plain

logger = logging.getLogger(__name__)


class JsonLines:
    """Appends rows to a file; a row that `write` returned from survives a kill of the process.

    What is there stays. A last line that a kill left without its end is ended first, so that it spoils no
    row.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = open(path, "ab+")  # noqa: SIM115  (open as long as the run)
        if not _ends_in_newline(self._file):
            self._file.write(b"\n")

    def write(self, row: Mapping[str, Any]) -> None:
        """One line, keys in the order given, numpy's numbers as JSON's, nan and infinities as null."""
        text = json.dumps(plain(row), allow_nan=False, ensure_ascii=False)
        self._file.write(text.encode() + b"\n")
        self._file.flush()

    def sync(self) -> None:
        """Bring all rows to the disk: then they survive a power cut too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """May be called twice."""
        self._file.close()

    def __enter__(self) -> "JsonLines":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def keep_rows_before(path: str | Path, iteration: int) -> int:
    """Drop what a run that goes on at `iteration` will write again; returns how many lines went.

    Dropped: rows whose "iteration" is `iteration` or later, a last line cut short, and lines that are no JSON
    object, these with a warning. Everything else keeps its bytes, rows without an "iteration" too. The file
    changes whole or not at all; it may be missing, and is not touched when there is nothing to drop. Call it
    before a JsonLines opens the file.
    """
    path = Path(path)
    if not path.exists():
        return 0
    kept: list[bytes] = []
    later = damaged = 0
    for line in _lines(path):
        row = _row(line)
        if row is None:
            damaged += 1
        elif _is_before(row, iteration):
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        else:
            later += 1
    if damaged:
        logger.warning("%s: %d lines that are no rows (cut short or damaged) are dropped", path, damaged)
    if later or damaged:
        with replace_file(path) as file:
            file.writelines(kept)
    return later + damaged


def _lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from file


def _row(line: bytes) -> dict[str, Any] | None:
    """The line's object; None when it is not one, or not whole. (An object tells its own end.)"""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        return None
    return row if isinstance(row, dict) else None


def _is_before(row: Mapping[str, Any], iteration: int) -> bool:
    step = row.get("iteration")
    return not isinstance(step, (int, float)) or step < iteration


def _ends_in_newline(file: BinaryIO) -> bool:
    """True for an empty file too."""
    if file.seek(0, 2) == 0:
        return True
    file.seek(-1, 2)
    return file.read(1) == b"\n"
