"""Processes of a job that find each other, or say who is missing and where. Real processes, without Slurm."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from mask_former.errors import InputError
from slurm.place import Place, Unmet
from slurm.rendezvous import GROUP_TIMEOUT, join
from slurm.store import PORT_FILE, PORT_TRIES, open_store, port_of

ROOT = Path(__file__).resolve().parent.parent
# Imports once, then forks a process for each [rank, size, job, patience, way], which reports to a file.
JOIN = """
import ctypes, json, os, sys, time, torch, weakref
from datetime import timedelta
from pathlib import Path
from detectron2.utils import comm
from mask_former.errors import run_cli
from mask_former.training.process_group import leaving_the_group
from slurm import place as places, rendezvous, store as stores

stores.KNOCK_SECONDS = 1.0
OBJECTS = ("objects", "objects hang", "objects fail")

def process(folder, rank, size, job, patience, way):
    file = os.open(f"{folder}/{job} {rank}", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if way == "leaves":  # after the roll call, before the sum
        rendezvous.dist.init_process_group = lambda *given, **named: os._exit(9)
    if way == "looks late":  # at what the first process has said
        opened = rendezvous.open_store
        class Late:
            def __init__(self, *given):
                self.store = opened(*given)
            def __getattr__(self, name):
                return getattr(self.store, name)
            def wait(self, *given):
                self.store.wait(*given)
                time.sleep(1.5)
        rendezvous.open_store = Late
    if way in ("hangs", "hangs and fails to tell"):  # in C, in the sum
        rendezvous.dist.all_reduce = lambda *given, **named: ctypes.CDLL(None).sleep(1000)
    if way in OBJECTS:  # all that is done for NCCL, over gloo
        init, barrier = rendezvous.dist.init_process_group, rendezvous.dist.barrier
        new = rendezvous.dist.new_group  # with ranks for the node's own group
        rendezvous.dist.init_process_group = lambda backend, **named: init("gloo", **named)
        rendezvous.dist.barrier = lambda device_ids: barrier()
        rendezvous.device_index = torch.cuda.set_device = lambda given: 0
        rendezvous.GROUP_TIMEOUT = timedelta(minutes=7)
    if way == "objects hang":  # in C
        rendezvous.dist.new_group = lambda *ranks, **named: (
            new(*ranks, **named) if ranks else ctypes.CDLL(None).sleep(1000)
        )
    if way == "objects fail":
        rendezvous.dist.new_group = lambda *ranks, **named: (
            new(*ranks, **named) if ranks else torch.empty(1).reshape(2)
        )
    place = places.Place(rank, size, rank, size, ("localhost",), job, 0, "local")
    run = Path(folder, f"{job} run")
    run.mkdir(exist_ok=True)
    def fail(line):
        raise RuntimeError(line)
    held = []
    @leaving_the_group()
    def main():
        words = fail if way == "hangs and fails to tell" else rendezvous.say
        rendezvous.join(place, "nccl" if way in OBJECTS else "gloo", run, patience, words)
        store = rendezvous.dist.distributed_c10d._get_default_store()
        said = [comm.get_rank(), comm.get_local_size(), store.timeout]
        if way in OBJECTS:
            group = comm._get_global_gloo_group()
            held.append(weakref.ref(group))
            timeout = group._get_backend(torch.device("cpu")).options._timeout
            said = [*comm.all_gather(rank), group is rendezvous.dist.group.WORLD, timeout]
        print(*said, flush=True)
    code = run_cli(main)
    return 3 if any(group() is not None for group in held) else code

children = []
for case in json.loads(sys.argv[2]):
    child = os.fork()
    if not child:
        os._exit(process(sys.argv[1], *case))
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""
Case = tuple[int, int, str, float, str]


def join_all(folder: Path, cases: list[Case]) -> list[tuple[int, str]]:
    """Exit code and last line of each process."""
    done = subprocess.run(
        [sys.executable, "-c", JOIN, str(folder), json.dumps(cases)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    codes = json.loads(done.stdout.splitlines()[-1])
    said = [(folder / f"{job} {rank}").read_text().strip().splitlines() for rank, _, job, _, _ in cases]
    return [(code, lines[-1] if lines else "") for code, lines in zip(codes, said, strict=True)]


@contextmanager
def listening(ports: list[int]) -> Iterator[None]:
    """Other programs at these ports, which never answer."""
    with ExitStack() as stack:
        for port in ports:
            taken = stack.enter_context(socket.socket(socket.AF_INET6))  # of IPv4 too
            taken.bind(("::", port))
            taken.listen()
        yield


def place(**changes: object) -> Place:
    fields = {
        "rank": 0,
        "size": 4,
        "local_rank": 0,
        "local_size": 2,
        "hosts": ("a", "b"),
        "job": "7",
        "restart": 0,
        "cluster": "slurm",
    }
    return Place(**{**fields, **changes})  # type: ignore[arg-type]


def test_ports_belong_to_a_copy_of_a_job() -> None:
    ports = {port_of(place(job=str(job), restart=restart)) for job in range(50) for restart in range(2)}
    assert len(ports) > 95 and all(20000 <= port < 60000 for port in ports)
    assert port_of(place(rank=3)) == port_of(place())  # the same in every process


def test_a_rank_runs_on_the_host_that_slurm_gives_it() -> None:
    assert [place().host_of(rank) for rank in range(4)] == ["a", "a", "b", "b"]


def test_one_process_needs_nobody() -> None:
    join(place(size=1), "gloo", Path("nowhere"), 0.0)


def test_all_find_each_other_or_name_who_is_missing(tmp_path: Path) -> None:
    """Several jobs at a time: all come; rank 1 does not come, and rank 2 hears of it late; it leaves before
    the sum; all hang in it; objects are exchanged with a timeout of their own, in a group that does not
    outlive the work; that group hangs; it fails; other programs have the first ports, or all.
    """
    jobs: dict[str, list[Case]] = {
        "whole": [(rank, 3, "whole", 30.0, "") for rank in range(3)],
        "lacking": [(0, 3, "lacking", 4.0, ""), (2, 3, "lacking", 4.0, "looks late")],
        "leaving": [(0, 2, "leaving", 4.0, ""), (1, 2, "leaving", 4.0, "leaves")],
        "hanging": [(rank, 3, "hanging", 4.0, "hangs") for rank in range(2)],
        "hanging and failing": [(2, 3, "hanging", 4.0, "hangs and fails to tell")],
        "objects": [(rank, 2, "objects", 30.0, "objects") for rank in range(2)],
        "stuck": [(rank, 2, "stuck", 4.0, "objects hang") for rank in range(2)],
        "refused": [(0, 2, "refused", 4.0, "objects"), (1, 2, "refused", 4.0, "objects fail")],
        "taken": [(rank, 2, "taken", 30.0, "") for rank in range(2)],
        "none": [(0, 2, "none", 5.0, "")],
    }
    taken, none = (
        [port_of(place(job=job), attempt) for attempt in range(PORT_TRIES)] for job in ("taken", "none")
    )
    with listening(taken[:2] + none):
        ended = iter(join_all(tmp_path, [case for cases in jobs.values() for case in cases]))
    said = {job: [next(ended) for _ in cases] for job, cases in jobs.items()}
    assert said["whole"] == [(0, f"{rank} 3 {GROUP_TIMEOUT}") for rank in range(3)]
    for code, line in said["lacking"]:
        assert code == 2 and line.startswith("error: after 4 s rank 1 on host localhost did not come"), line
    (code, line), left = said["leaving"]
    assert left == (9, "") and code == 2
    assert "the first all-reduce by gloo failed" in line and "rank 1 on host localhost is missing" in line
    for code, line in said["hanging"]:
        assert code == 1 and "the first all-reduce by gloo failed (it hangs after 4 s); all" in line, line
    ((code, line),) = said["hanging and failing"]
    assert (code, line) == (1, "")
    assert said["objects"] == [(0, "0 1 False 0:07:00")] * 2  # not torch's half an hour
    for code, line in said["stuck"]:
        assert code == 1 and "the group for objects by gloo failed (it hangs after 4 s); all" in line, line
    code, line = said["refused"][1]
    assert code == 2 and "rank 1 on " in line and "the group for objects by gloo failed (shape " in line, line
    assert said["taken"] == [(0, f"{rank} 2 {GROUP_TIMEOUT}") for rank in range(2)]
    assert json.loads((tmp_path / "taken run" / PORT_FILE).read_text())["port"] == taken[2]
    ((code, line),) = said["none"]
    assert code == 2 and f"cannot listen on ports {none[0]} to {none[-1]} of localhost" in line, line


def test_without_the_first_process_the_others_say_where_it_should_be(tmp_path: Path) -> None:
    alone = place(rank=1, size=2, hosts=("localhost",), job="nobody comes")
    with pytest.raises(InputError, match="cannot reach rank 0 on localhost, port"):
        join(alone, "gloo", tmp_path, 1.0)


def test_a_first_process_whose_host_has_no_address_does_not_blame_other_programs(tmp_path: Path) -> None:
    """Once, not at each port; the file of an earlier start, which may have had the same name, is gone."""
    (tmp_path / PORT_FILE).write_text(json.dumps({"job": "7", "restart": 0, "port": 1}))
    began = time.monotonic()
    with pytest.raises(Unmet, match="rank 0 cannot open its store on no.such.host .*lead to the node itself"):
        open_store(place(hosts=("no.such.host",)), tmp_path, 1.0)
    assert time.monotonic() - began < 15
    assert not (tmp_path / PORT_FILE).exists()


def test_a_first_process_that_is_lost_at_the_roll_call_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr("slurm.rendezvous.open_store", lambda *_: Lost())
    with pytest.raises(Unmet, match=r"rank 1 on .* lost rank 0 on a at the roll call \(Connection reset"):
        join(place(rank=1), "gloo", tmp_path, 1.0)
