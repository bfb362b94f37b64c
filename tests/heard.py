"""What a logger says, whatever other tests made of its parents' handlers and levels."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heard(name: str, level: int = logging.WARNING) -> Iterator[list[str]]:
    """The messages of the logger called `name`, at `level` and above, while the body runs."""
    messages: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, ear = logging.getLogger(name), Ear(level)
    before = logger.level
    logger.addHandler(ear)
    logger.setLevel(min(level, before) if before else level)
    try:
        yield messages
    finally:
        logger.removeHandler(ear)
        logger.setLevel(before)
