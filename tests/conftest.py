"""What every test starts from."""

import logging

import pytest

OURS = ("detectron2", "fvcore", "mask_former", "pisr_maskformer", "tools")


@pytest.fixture(autouse=True)
def messages_reach_caplog() -> None:
    """A tool that an earlier test ran keeps its loggers' messages from the root, where caplog listens."""
    for name in OURS:
        logging.getLogger(name).propagate = True
    for name, logger in logging.root.manager.loggerDict.items():
        if isinstance(logger, logging.Logger) and name.startswith(tuple(f"{one}." for one in OURS)):
            logger.setLevel(logging.NOTSET)
