"""The processes of a job find each other, and prove it before hours of training depend on it.

Every process comes to the store on the first host and leaves its name there. Who has not come after
`patience` seconds is named, with the host where it should run. Then all add up their numbers once, over the
network that training will use, with a short timeout.
"""

import functools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm

from mask_former.errors import InputError
from slurm.place import Place, Unmet
from slurm.store import client, open_store, short

GROUP_TIMEOUT = timedelta(minutes=60)  # an evaluation in which the main process works alone must fit
TEST_SPARE = timedelta(seconds=60)  # of NCCL's own watchdog, which ends a process without a line
LOOK_SECONDS = 5.0  # for all to say that something failed, and then to see who has not said so
ORDERLY_SECONDS = 2.0  # for a late process to raise, before it is ended where it hangs


def say(line: str) -> None:
    print(f"error: {line}", flush=True)


def join(
    place: Place,
    backend: str,
    folder: Path,
    patience: float = 60.0,
    last_words: Callable[[str], None] = say,
) -> None:
    """Make the process group of the job; nothing to do for one process. `folder`: the run's.

    Unmet in every process that is there, naming who is missing and where it should run. `last_words` gets
    that line where the process must be ended, since it hangs in an exchange.
    """
    if place.size == 1:
        return
    store = open_store(place, folder, patience)
    try:
        _wait_for_all(store, place, patience)
    except RuntimeError as error:
        raise Unmet(
            f"rank {place.rank} on {socket.gethostname()} has lost rank 0 on {place.hosts[0]} at the roll "
            f"call ({short(error)}); see its log"
        ) from error
    devices = None
    if backend == "nccl":
        devices = [device_index(place)]
        torch.cuda.set_device(devices[0])
    spare = TEST_SPARE if backend == "nccl" else timedelta(0)
    phase = functools.partial(_phase, store, place, patience, last_words)
    with phase(backend, "the first all-reduce"):
        _make_group(store, place, backend, "test", timedelta(seconds=patience) + spare)
        _add_up(place, patience)
    dist.destroy_process_group()
    # NCCL connects at the first exchange, and asks this store then, by the store's own timeout.
    store.set_timeout(GROUP_TIMEOUT)
    with phase(backend, "the training's group"):
        _make_group(store, place, backend, "training", GROUP_TIMEOUT)
        dist.barrier(device_ids=devices)  # connected, before the main process waits for an old copy's lock
        comm.create_local_process_group(place.local_size)
    if backend == "nccl":
        with phase("gloo", "the group for objects"):
            exchange_objects_within(GROUP_TIMEOUT)


@contextmanager
def _phase(
    store: dist.TCPStore,
    place: Place,
    patience: float,
    last_words: Callable[[str], None],
    backend: str,
    what: str,
) -> Iterator[None]:
    """A body that all processes pass together: Unmet where it fails in one, naming who is missing.

    A process that hangs where no exception reaches it is ended, with a line.
    """

    def end() -> None:
        try:
            error = RuntimeError(f"it hangs after {patience:g} s")
            try:  # by a connection of its own: the hanging thread may hold the other one
                own = client(place, port, ORDERLY_SECONDS)
            except (RuntimeError, TimeoutError):
                own = None
            last_words(_unreachable(own, place, backend, what, error))
        finally:  # whatever fails above
            os._exit(1)

    port = store.port
    timer = threading.Timer(patience + ORDERLY_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        try:
            yield
            _wait_until_done(store, place, what, patience)
        finally:
            timer.cancel()
    except RuntimeError as error:
        raise Unmet(_unreachable(store, place, backend, what, error)) from error


def _make_group(store: dist.TCPStore, place: Place, backend: str, name: str, timeout: timedelta) -> None:
    prefixed = dist.PrefixStore(name, store)
    dist.init_process_group(backend, store=prefixed, rank=place.rank, world_size=place.size, timeout=timeout)


def exchange_objects_within(timeout: timedelta) -> None:
    """The timeout of detectron2's group for Python objects, which beside NCCL has torch's default, 30 min.

    All processes call it together. detectron2 keeps that group in a function's cache.
    """
    # made in the cache, and held by nothing else: who empties the cache, as at the end, is rid of the group
    comm._get_global_gloo_group = functools.cache(lambda: dist.new_group(backend="gloo", timeout=timeout))
    comm._get_global_gloo_group()


def device_index(place: Place) -> int:
    """The GPU of this process among those that it sees: its own alone, or all of the node's."""
    visible = torch.cuda.device_count()
    if visible == 1:
        return 0
    if place.local_rank >= visible:
        raise InputError(
            f"rank {place.rank} on {socket.gethostname()} sees {visible} GPUs, but {place.local_size} "
            "processes share them; ask for one GPU a process (--gpus, --nodes), or mend the GPU binding"
        )
    return place.local_rank


def _wait_for_all(store: dist.TCPStore, place: Place, patience: float) -> None:
    """Rank 0 tells the others whether all have come: "" or who has not."""
    store.set(f"come {place.rank}", socket.gethostname())
    missing: list[int] = []
    if place.rank == 0:
        missing = _wait_for(store, "come", range(place.size), patience)
        said = ""
        if missing:
            said = (
                f"after {patience:g} s {_named(missing, place)} did not come to {place.hosts[0]}; look at "
                "its log and at that node, exclude it by --exclude NODE, and submit again"
            )
        store.set("all", said)
    store.wait(["all"], timedelta(seconds=patience + 30))
    said = store.get("all").decode()
    if not said:
        return
    with suppress(RuntimeError):
        _leave_together(store, place, "heard", missing)
    raise Unmet(said)


def _wait_for(store: dist.TCPStore, what: str, ranks: Iterable[int], patience: float) -> list[int]:
    """Those of the ranks that have not set their key of this kind when `patience` is over."""
    deadline = time.monotonic() + patience
    missing = list(ranks)
    while missing:
        missing = [rank for rank in missing if not store.check([f"{what} {rank}"])]
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return missing


def _leave_together(store: dist.TCPStore, place: Place, what: str, missing: list[int]) -> None:
    """Rank 0 leaves last: the store ends with it, and whoever asks later would miss rank 0."""
    store.set(f"{what} {place.rank}", "")
    if place.rank == 0:
        _wait_for(store, what, set(range(place.size)) - set(missing), LOOK_SECONDS)


def _named(ranks: list[int], place: Place) -> str:
    return ", ".join(f"rank {rank} on host {place.host_of(rank)}" for rank in ranks)


def _add_up(place: Place, patience: float) -> None:
    """The sum of 1 … size over all processes, within `patience` seconds."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    number = torch.full((1,), float(place.rank + 1), device=device)
    deadline = time.monotonic() + patience
    work = dist.all_reduce(number, async_op=True)
    while not work.is_completed():
        if time.monotonic() > deadline:
            raise RuntimeError(f"no answer in {patience:g} s")
        time.sleep(0.01)
    work.wait()
    if number.item() != place.size * (place.size + 1) / 2:
        raise RuntimeError(f"the numbers add up to {number.item():g}")


def _wait_until_done(store: dist.TCPStore, place: Place, what: str, patience: float) -> None:
    """Nobody leaves a group before all have passed; RuntimeError when one fails."""
    store.set(f"{what} {place.rank}", "")
    keys = [f"{what} {rank}" for rank in range(place.size)]
    store.wait(keys, timedelta(seconds=patience))
    failed = [rank for rank, key in enumerate(keys) if store.get(key)]
    if failed:
        raise RuntimeError(f"{_named(failed, place)} failed")


def _unreachable(store: dist.TCPStore | None, place: Place, backend: str, what: str, error: Exception) -> str:
    here = f"rank {place.rank} on {socket.gethostname()}"
    missing = [0]  # whom the store goes with
    if store is not None:
        with suppress(RuntimeError):
            store.set(f"{what} {place.rank}", "in vain")  # those that do not even say so are gone
            missing = _wait_for(store, what, range(place.size), LOOK_SECONDS)
            _leave_together(store, place, f"{what}, looked", missing)
    who = f"{_named(missing, place)} is missing" if missing else "all processes have come"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    return (
        f"{here}: {what} by {backend} failed ({short(error)}); {who}; name the network between the "
        f"nodes by {variable} in the profile's env, or exclude the node"
    )
