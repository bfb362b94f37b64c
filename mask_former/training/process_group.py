"""How a process of a distributed run leaves its process groups when its work is over."""

import gc
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from detectron2.utils import comm

from mask_former.training.stopping import RunStopped


@contextmanager
def leaving_the_group() -> Iterator[None]:
    """Decorator of a process's work: after its end, or its stop on request, no process group is left.

    A thread of a group that drops the last tensor of an exchange takes Python's lock for it. If Python is
    ending meanwhile, that aborts the process, and a finished run counts as failed: so the threads end first.
    As a decorator, since what the work has held, its model among it, holds the groups too. After another
    exception nothing is done: the peers may be in an exchange.
    """
    try:
        yield
    except RunStopped as stopped:
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
    dist.destroy_process_group()
