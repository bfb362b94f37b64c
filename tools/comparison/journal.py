"""A line per finished image: a comparison that was stopped goes on where it was, and nothing large is kept.

comparison.json    what is compared; another comparison in the same folder is refused
images.jsonl       a record per image (scores.py), in the order in which they were finished
instances.jsonl    the instances of each image as run-length codes, for AP; written before its record
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask_former.errors import InputError, is_disk_full
from mask_former.evaluation.metrics_file import write_json
from mask_former.training.json_lines import JsonLines

HEADER, IMAGES, INSTANCES = "comparison.json", "images.jsonl", "instances.jsonl"
FILES = (HEADER, IMAGES, INSTANCES)
FORMAT = 1  # of the records; a comparison of another one is not gone on with


class Journal:
    """The records of a comparison in its output folder."""

    def __init__(self, folder: Path, compared: dict[str, Any]) -> None:
        """`compared`: what the results depend on. InputError when the folder holds another comparison."""
        self.folder = folder
        digest = hashlib.sha256(json.dumps([FORMAT, compared], sort_keys=True).encode()).hexdigest()
        header = folder / HEADER
        if header.exists():
            if _read_object(header).get("digest") != digest:
                raise InputError(
                    f"{folder} holds a comparison of other models, images, labels or settings, or of files "
                    "that changed since; choose another --output, or delete it"
                )
        else:
            write_json({"digest": digest, "compared": compared}, header)

    def done(self) -> set[int]:
        """Indices of the images that need no more work: they have a record, and its pictures are there."""
        return {
            record["index"]
            for record in self.records()
            if all((self.folder / file).is_file() for file in record["pictures"].values())
        }

    def records(self) -> list[dict[str, Any]]:
        """All records by index."""
        found = {record["index"]: record for record in self._rows(IMAGES)}
        return [found[index] for index in sorted(found)]

    def instances(self) -> Iterator[dict[str, Any]]:
        """The instance rows of finished images, one at a time, each image once."""
        missing = {record["index"] for record in self.records()}
        for row in self._rows(INSTANCES):
            if row["index"] in missing:
                missing.discard(row["index"])
                yield row

    def add(self, record: dict[str, Any], instances: dict[str, Any] | None) -> None:
        """Keep what an image gave; a kill before the end of this makes the image be done again."""
        if instances is not None:
            with JsonLines(self.folder / INSTANCES) as file:
                file.write({"index": record["index"], **instances})
        with JsonLines(self.folder / IMAGES) as file:
            file.write(record)

    def _rows(self, name: str) -> Iterator[dict[str, Any]]:
        """Whole rows of a file; what a kill cut short is no row."""
        path = self.folder / name
        if not path.exists():
            return
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and isinstance(row.get("index"), int):
                    yield row


def require_no_folders(output: Path, names: Iterable[str]) -> None:
    """InputError when a folder is in the place of a result, before any work is done."""
    for name in names:
        if (output / name).is_dir():
            raise InputError(f"cannot write {output / name}: it is a folder; choose another --output")


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """A disk without room becomes an InputError that says so."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise InputError(
            f"no room to write in {folder} ({error.strerror}); make some, and start again: it goes on"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    return content if isinstance(content, dict) else {}
