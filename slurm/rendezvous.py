"""The processes of a job find each other, and prove it before hours of training depend on it.

Every process comes to the store on the first host and leaves its name there. Who has not come after
`patience` seconds is named, with the host where it should run. Then all add up their numbers once, over the
network that training will use, with a short timeout.
"""

import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from detectron2.utils import comm

from mask_former.errors import InputError

FIRST_PORT, PORTS = 20000, 40000
GROUP_TIMEOUT = timedelta(minutes=60)  # an evaluation in which the main process works alone must fit
TEST_SPARE = timedelta(seconds=60)  # of NCCL's own watchdog, which ends a process without a line
ORDERLY_SECONDS = 2.0  # for a late process to raise, before it is ended where it hangs


@dataclass(frozen=True)
class Place:
    """Where this process stands in its job."""

    rank: int
    size: int  # processes of the job
    local_rank: int
    local_size: int  # processes of this node
    hosts: tuple[str, ...]  # of the nodes, the first process's first
    job: str
    restart: int
    cluster: str  # slurm, local or debug

    def host_of(self, rank: int) -> str:
        return self.hosts[min(rank // self.local_size, len(self.hosts) - 1)]


def this_place() -> Place:
    """From the environment that the scheduler gives to each process."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    job = (
        environment.job_id
        if environment.cluster == "slurm"
        else f"{environment.cluster}-{environment.job_id}"
    )
    return Place(
        rank=environment.global_rank,
        size=environment.num_tasks,
        local_rank=environment.local_rank,
        local_size=max(1, environment.num_tasks // environment.num_nodes),
        hosts=tuple(environment.hostnames),
        job=job,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)) if environment.cluster == "slurm" else 0,
        cluster=environment.cluster,
    )


def port_of(place: Place) -> int:
    """A port that each copy of a job has for itself, as far as that can be had without asking."""
    return FIRST_PORT + zlib.crc32(f"{place.job} {place.restart}".encode()) % PORTS


def say(line: str) -> None:
    print(f"error: {line}", flush=True)


def join(place: Place, backend: str, patience: float = 60.0, last_words: Callable[[str], None] = say) -> None:
    """Make the process group of the job; nothing to do for one process.

    InputError in every process that is there, naming who is missing and where it should run. `last_words`
    gets that line where the process must be ended, since it hangs in an exchange.
    """
    if place.size == 1:
        return
    store = _store(place, patience)
    _wait_for_all(store, place, patience)
    devices = None
    if backend == "nccl":
        devices = [device_index(place)]
        torch.cuda.set_device(devices[0])
    spare = TEST_SPARE if backend == "nccl" else timedelta(0)
    try:
        with _ended_after(patience, place, backend, last_words):
            _make_group(store, place, backend, "test", timedelta(seconds=patience) + spare)
            _add_up(store, place, patience)
    except RuntimeError as error:
        raise InputError(_unreachable(store, place, backend, error)) from error
    dist.destroy_process_group()
    # NCCL connects at the first exchange, and asks this store then, by the store's own timeout.
    store.set_timeout(GROUP_TIMEOUT)
    with _ended_after(patience, place, backend, last_words):
        _make_group(store, place, backend, "training", GROUP_TIMEOUT)
        dist.barrier(device_ids=devices)  # connected, before the main process waits for an old copy's lock
    comm.create_local_process_group(place.local_size)


@contextmanager
def _ended_after(
    patience: float, place: Place, backend: str, last_words: Callable[[str], None]
) -> Iterator[None]:
    """A body in which a process may hang where no exception reaches it: it is ended then, with a line."""

    def end() -> None:
        error = RuntimeError(f"it hangs after {patience:g} s")
        try:  # by a connection of its own: the hanging thread may hold the other one
            store = _client(place, port_of(place), ORDERLY_SECONDS)
        except (RuntimeError, TimeoutError):
            store = None
        last_words(_unreachable(store, place, backend, error))
        os._exit(1)

    timer = threading.Timer(patience + ORDERLY_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _make_group(store: dist.TCPStore, place: Place, backend: str, name: str, timeout: timedelta) -> None:
    prefixed = dist.PrefixStore(name, store)
    dist.init_process_group(backend, store=prefixed, rank=place.rank, world_size=place.size, timeout=timeout)


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


def _store(place: Place, patience: float) -> dist.TCPStore:
    port = port_of(place)
    try:
        return _client(place, port, patience, is_master=place.rank == 0)
    except (RuntimeError, TimeoutError) as error:
        reason = " ".join(str(error).split())[:200]
        if place.rank == 0:
            raise InputError(
                f"rank 0 cannot listen on port {port} of {place.hosts[0]} ({reason}); another program has "
                "it: submit the job again, it will get another port"
            ) from error
        raise InputError(
            f"rank {place.rank} on {socket.gethostname()} cannot reach rank 0 on {place.hosts[0]}, port "
            f"{port} ({reason}): rank 0 did not come, or the network does not let it through; see its log"
        ) from error


def _client(place: Place, port: int, seconds: float, is_master: bool = False) -> dist.TCPStore:
    return dist.TCPStore(
        place.hosts[0],
        port,
        world_size=place.size,
        is_master=is_master,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )


def _wait_for_all(store: dist.TCPStore, place: Place, patience: float) -> None:
    """Rank 0 tells the others whether all have come: "" or who has not."""
    store.set(f"come {place.rank}", socket.gethostname())
    if place.rank == 0:
        missing = _wait_for(store, "come", place, patience)
        said = ""
        if missing:
            said = (
                f"after {patience:g} s {_named(missing, place)} did not come to {place.hosts[0]}; look at "
                "its log and at that node, exclude it by --exclude NODE, and submit again"
            )
        store.set("all", said)
    store.wait(["all"], timedelta(seconds=patience + 30))
    said = store.get("all").decode()
    if said:
        raise InputError(said)


def _wait_for(store: dist.TCPStore, what: str, place: Place, patience: float) -> list[int]:
    """Ranks that have not set their key of this kind when `patience` is over."""
    deadline = time.monotonic() + patience
    missing = list(range(place.size))
    while missing:
        missing = [rank for rank in missing if not store.check([f"{what} {rank}"])]
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return missing


def _named(ranks: list[int], place: Place) -> str:
    return ", ".join(f"rank {rank} on host {place.host_of(rank)}" for rank in ranks)


def _add_up(store: dist.TCPStore, place: Place, patience: float) -> None:
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
    store.set(f"done {place.rank}", "")  # nobody leaves the group before all have their sum
    keys = [f"done {rank}" for rank in range(place.size)]
    store.wait(keys, timedelta(seconds=patience))
    failed = [rank for rank, key in enumerate(keys) if store.get(key)]
    if failed:
        raise RuntimeError(f"{_named(failed, place)} failed")


def _unreachable(store: dist.TCPStore | None, place: Place, backend: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    here = f"rank {place.rank} on {socket.gethostname()}"
    missing = [0]  # whom the store goes with
    if store is not None:
        with suppress(RuntimeError):
            store.set(f"done {place.rank}", "in vain")  # those that do not even say so are gone
            missing = _wait_for(store, "done", place, 5.0)
    who = f"{_named(missing, place)} is missing" if missing else "all processes have come"
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    return (
        f"{here}: the first all-reduce by {backend} failed ({reason}); {who}; name the network between the "
        f"nodes by {variable} in the profile's env, or exclude the node"
    )
