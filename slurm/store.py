"""Where the processes of a job meet: a store that the first one opens on its host, at a port that is free.

The port comes from the job's name, so that nobody has to ask for it. When another program has it, the first
process takes one of the next ports, and publishes it in the run's folder:

    rendezvous.json    {"job", "restart", "port"}
"""

import json
import socket
import threading
import time
import zlib
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

import torch.distributed as dist

from mask_former.atomic_write import replace_file
from slurm.place import Place, Unmet

FIRST_PORT, PORTS = 20000, 40000
PORT_TRIES = 5
KNOCK_SECONDS = 10.0  # at one port, before the published one is looked up again
PORT_FILE = "rendezvous.json"


def port_of(place: Place, attempt: int = 0) -> int:
    """A port that each copy of a job has for itself, as far as that can be had without asking."""
    return FIRST_PORT + (zlib.crc32(f"{place.job} {place.restart}".encode()) + attempt) % PORTS


def open_store(place: Place, folder: Path, patience: float) -> dist.TCPStore:
    """The store of this copy of the job; its processes see `folder`. Unmet when there is none in time."""
    return _listen(place, folder, patience) if place.rank == 0 else _find(place, folder, patience)


def client(place: Place, port: int, seconds: float, is_master: bool = False) -> dist.TCPStore:
    return dist.TCPStore(
        place.hosts[0],
        port,
        world_size=place.size,
        is_master=is_master,
        timeout=timedelta(seconds=seconds),
        wait_for_workers=False,
    )


def _listen(place: Place, folder: Path, patience: float) -> dist.TCPStore:
    (folder / PORT_FILE).unlink(missing_ok=True)  # of a start before, which may have had the same name
    for attempt in range(PORT_TRIES):
        port = port_of(place, attempt)
        try:
            store = client(place, port, patience, is_master=True)
        except (RuntimeError, TimeoutError) as error:
            if not _is_taken(error):
                raise Unmet(
                    f"rank 0 cannot open its store on {place.hosts[0]} ({short(error)}): that name must "
                    "lead to the node itself there; mend the node's /etc/hosts or DNS, or exclude it"
                ) from error
            continue
        store.set(_sign(place), "")
        if attempt:
            print(f"port {port_of(place)} is another program's: the processes meet at {port}", flush=True)
            _publish(place, port, folder)
        return store
    raise Unmet(
        f"rank 0 cannot listen on ports {port_of(place)} to {port} of {place.hosts[0]}: other programs "
        "have them; submit the job again, it will get others"
    )


def _is_taken(error: Exception) -> bool:
    return "EADDRINUSE" in str(error) or "address already in use" in str(error).lower()


def _publish(place: Place, port: int, folder: Path) -> None:
    said = {"job": place.job, "restart": place.restart, "port": port}
    with replace_file(folder / PORT_FILE) as file:
        file.write(json.dumps(said).encode() + b"\n")


def _published_port(place: Place, folder: Path) -> int:
    """What this copy's first process has published, else the port that it tries first."""
    try:
        said = json.loads((folder / PORT_FILE).read_bytes())
        if (said["job"], said["restart"]) == (place.job, place.restart):
            return int(said["port"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return port_of(place)


def _find(place: Place, folder: Path, patience: float) -> dist.TCPStore:
    deadline = time.monotonic() + patience
    while True:
        port = _published_port(place, folder)
        try:
            store = _knock(place, port, max(0.1, min(KNOCK_SECONDS, deadline - time.monotonic())))
        except (RuntimeError, TimeoutError) as error:
            if time.monotonic() >= deadline:
                raise Unmet(
                    f"rank {place.rank} on {socket.gethostname()} cannot reach rank 0 on {place.hosts[0]}, "
                    f"port {port} ({short(error)}): rank 0 did not come, or the network does not let it "
                    "through; see its log"
                ) from error
        else:
            store.set_timeout(timedelta(seconds=patience))
            return store


def _knock(place: Place, port: int, seconds: float) -> dist.TCPStore:
    """The store at this port, if it is that of this copy of the job.

    In a thread, which is left behind when it hangs: torch waits without end for a program that is no store.
    """
    answers: SimpleQueue[dist.TCPStore | Exception] = SimpleQueue()

    def knock() -> None:
        try:
            store = client(place, port, seconds)
            store.wait([_sign(place)], timedelta(seconds=seconds))
            answers.put(store)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=knock, name="knock", daemon=True).start()
    try:
        answer = answers.get(timeout=2 * seconds + 1)
    except Empty:
        raise TimeoutError("another program answers there") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _sign(place: Place) -> str:
    return f"store of job {place.job} restart {place.restart}"


def short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
