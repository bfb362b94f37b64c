"""The journal of a conversion: a line of JSON for every image that is done, so that a run can go on there.

It is appended to while a run goes on and sorted when it ends. A run that is killed may leave half a line,
which counts as none.
"""

import dataclasses
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mask_former.atomic_write import replace_file
from mask_former.data.ade20k_conversion import Converted
from mask_former.errors import InputError

LOCK_PATIENCE = 5.0  # seconds; the workers of a run that was just killed need a moment to notice


def read_journal(path: Path) -> dict[str, Converted]:
    """The images of a journal by name; lines that are cut short or of another version's form are left out."""
    images = {}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        with suppress(ValueError, TypeError):  # not JSON, not text; not an object, other fields
            image = Converted(**json.loads(line))
            images[image.name] = image
    return images


@contextmanager
def open_journal(path: Path, whole: Iterable[Converted]) -> Iterator[Callable[[Converted], None]]:
    """A journal that holds the images of `whole`; yields a function that adds one.

    What was added survives the end of this process, however it comes.
    """
    write_if_changed(path, journal_content(whole))
    with path.open("ab", buffering=0) as file:

        def add(image: Converted) -> None:
            file.write(_line(image))

        yield add


def journal_content(images: Iterable[Converted]) -> bytes:
    """The journal of images that are done, by name: the same bytes in whatever order they were made."""
    return b"".join(_line(image) for image in sorted(images, key=lambda image: image.name))


def write_if_changed(path: Path, content: bytes) -> None:
    """Let `path` hold `content`; a file that does so already is left alone."""
    if not path.exists() or path.read_bytes() != content:
        with replace_file(path, durable=True) as file:
            file.write(content)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` until the end; InputError when one is in it."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        _lock(handle, folder)
        yield
    finally:
        os.close(handle)


def _lock(handle: int, folder: Path) -> None:
    patience = time.monotonic() + LOCK_PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if time.monotonic() > patience:
                raise InputError(f"{folder}: another run is writing here; wait until it is done") from error
            time.sleep(0.1)
        except OSError:  # a file system without locks: the user has to see to it
            return


def _line(image: Converted) -> bytes:
    return json.dumps(dataclasses.asdict(image)).encode() + b"\n"
