"""What every test starts from."""

import logging

import pytest

OURS = ("detectron2", "fvcore", "mask_former", "pisr_maskformer", "tools")


@pytest.fixture(autouse=True)
def messages_reach_caplog() -> None:
    """A tool that an earlier test ran keeps its loggers' messages from the root, where caplog listens."""
    for name in OURS:
        logging.getLogger(name).propagate = True
