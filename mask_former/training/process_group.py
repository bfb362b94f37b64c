"""How a process of a distributed run leaves its process groups when its work is over."""

import gc
import logging
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from detectron2.utils import comm

from mask_former.training.stopping import RunStopped

LET_GO_SECONDS = 0.1  # for a group's threads to drop the last exchange's tensors

logger = logging.getLogger(__name__)


@contextmanager
def leaving_the_group() -> Iterator[None]:
    """Decorator of a process's work: when all processes have ended it, or stopped it together, no process
    group is left. Afterwards detectron2's `comm` knows one process alone.

    A thread of a gloo group that drops the last tensor of an exchange takes Python's global lock for it. If
    Python is ending meanwhile, that aborts the process ("terminate called without an active exception"), and
    a finished run counts as failed: so the threads end first.

    A decorator, not for `with`: what the work has held, its model among it, holds the groups too, until it
    has returned. After any other exception nothing is done: peers may still be in an exchange.
    """
    try:
        yield
    except RunStopped as stopped:
        if stopped.agreed:
            traceback.clear_frames(stopped.__traceback__)
            _leave()
        raise
    _leave()


def _leave() -> None:
    if not dist.is_available() or not dist.is_initialized():
        return
    gc.collect()  # a model in a reference cycle
    comm._LOCAL_PROCESS_GROUP = None
    comm._get_global_gloo_group.cache_clear()
    time.sleep(LET_GO_SECONDS)  # older torch waits for the threads with the lock that they want
    try:
        dist.destroy_process_group()
    except RuntimeError as error:  # the work is done, and its peers' ends are no failure of it
        logger.warning("leaving the process group: %s", error)
