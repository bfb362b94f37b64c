"""How a process of a job leaves: who requeues, and when; whose trace is written. Without Slurm."""

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import torch

from mask_former.errors import InputError
from mask_former.training.stopping import StopRequest
from slurm import ending
from slurm import task as task_module
from slurm.place import Place, Unmet
from slurm.task import TrainingTask
from slurm.traces import Traces

ROOT = Path(__file__).resolve().parent.parent


def task(run_dir: str = "runs/x", **changes: Any) -> TrainingTask:
    fields = {
        "config": "c.yaml",
        "overrides": (),
        "flags": (),
        "working_directory": "/",
        "gpus": 2,
        "max_restarts": 2,
        "token": "abc",
        "patience": 1.0,
    }
    return TrainingTask(run_dir=run_dir, **{**fields, **changes})


def place(rank: int = 0, restart: int = 0, cluster: str = "slurm") -> Place:
    return Place(rank, 2, rank, 2, ("node1",), "7", restart, cluster)


def test_the_task_survives_pickling_and_comes_back_as_itself() -> None:
    """submitit looks for one of two names on what it has pickled."""
    copy = pickle.loads(cloudpickle.dumps(task()))
    assert copy == task()
    assert copy.checkpoint().function == copy.__submitit_checkpoint__().function == copy


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Slurm says of the job's state; "requeued" collects the jobs that were requeued, or with "wished"
    had that wished for.
    """
    says: dict[str, Any] = {"state": "RUNNING", "times": {}, "requeued": [], "wished": False}

    def ask(*command: str) -> str | None:
        job = {"JobId": "7", "JobState": says["state"], "PreemptTime": "None", "EndTime": "Unknown"}
        told = " ".join(f"{key}={value}" for key, value in {**job, **says["times"]}.items())
        return f"{told}\n" if says["state"] and "scontrol" in command else None

    def requeue(job: str) -> bool:
        says["requeued"].append(job)
        return not says["wished"]

    monkeypatch.setattr("slurm.ending.ask", ask)
    monkeypatch.setattr("slurm.cluster.ask", ask)
    monkeypatch.setattr("slurm.ending.requeue", requeue)
    monkeypatch.setattr(task_module, "SIGNAL_SECONDS", 0.2)
    return says


def at(seconds: float) -> str:
    """So many seconds from now, as Slurm writes it."""
    return f"{datetime.now() + timedelta(seconds=seconds):%Y-%m-%dT%H:%M:%S}"


@pytest.mark.parametrize(
    ("where", "number", "state", "code", "requeued"),
    [
        (place(), signal.SIGUSR2, "RUNNING", 0, True),
        (place(), signal.SIGUSR2, None, 0, True),  # Slurm does not answer, but it has warned
        (place(), signal.SIGUSR2, "PENDING", 0, False),  # requeued by someone else already
        (place(), signal.SIGTERM, "CANCELLED", 0, False),
        (place(), None, "RUNNING", 0, True),  # another process was signalled
        (place(rank=1), signal.SIGUSR2, "RUNNING", 0, False),
        (place(restart=1), signal.SIGUSR2, "RUNNING", 0, True),
        (place(cluster="local"), signal.SIGUSR2, None, 144, False),
        (place(cluster="local"), signal.SIGTERM, None, 0, False),
    ],
)
def test_the_first_process_requeues_a_job_that_runs_on(
    slurm: dict[str, Any], where: Place, number: signal.Signals | None, state: str, code: int, requeued: bool
) -> None:
    slurm["state"], stop = state, StopRequest()
    if number:
        stop.receive(number)
    with pytest.raises(SystemExit) as left:
        task()._come_back(where, stop, "stopped", [])
    assert left.value.code == code
    assert slurm["requeued"] == (["7"] if requeued else [])


@pytest.mark.parametrize(
    ("times", "requeued"),
    [
        ({"PreemptTime": at(-1), "EndTime": at(9000)}, True),
        ({"EndTime": at(80)}, True),  # within the grace of 90 s
        ({"EndTime": at(9000), "PreemptEligibleTime": at(-60)}, False),
        ({"EndTime": "Unknown", "PreemptTime": "N/A"}, False),
    ],
)
def test_sigterm_in_a_job_that_runs_on_is_a_killed_process_unless_slurm_ends_it(
    slurm: dict[str, Any], times: dict[str, str], requeued: bool
) -> None:
    stop, slurm["times"] = StopRequest(), times
    stop.receive(signal.SIGTERM)
    with pytest.raises(SystemExit if requeued else InputError) as left:
        task()._come_back(place(), stop, "stopped", [])
    assert slurm["requeued"] == (["7"] if requeued else [])
    if not requeued:
        assert "a process of the job was killed (out of memory?); to go on, submit again" in str(left.value)


def test_a_requeue_that_is_only_wished_for_has_srun_end_those_that_hang(slurm: dict[str, Any]) -> None:
    slurm["wished"] = True
    stop = StopRequest()
    stop.receive(signal.SIGUSR2)
    with pytest.raises(SystemExit) as left:
        task()._come_back(place(), stop, "stopped", [])
    assert left.value.code == 1 and slurm["requeued"] == ["7"]


def test_sigterm_without_an_answer_of_slurm_is_no_success(slurm: dict[str, Any]) -> None:
    stop, slurm["state"] = StopRequest(), None
    stop.receive(signal.SIGTERM)
    with pytest.raises(InputError, match="not requeued: Slurm does not answer; to go on, submit again"):
        task()._come_back(place(), stop, "stopped", [])
    assert slurm["requeued"] == []


@pytest.mark.parametrize(
    ("error", "broken"),
    [
        (
            RuntimeError("[…/gloo/transport/tcp/pair.cc:538] Read error [::1]:5: Connection reset by peer"),
            True,
        ),
        (RuntimeError("Application timeout caused pair closure"), True),
        (torch.distributed.DistBackendError("ncclRemoteError: A call failed"), True),
        (RuntimeError("NCCL communicator was aborted on rank 1."), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (torch.cuda.OutOfMemoryError("CUDA out of memory, NCCL holds 1 GiB"), False),
        (RuntimeError("stack expects each tensor to be equal size"), False),
        (ValueError("Connection reset by peer"), False),
    ],
)
def test_only_a_lost_peer_is_a_broken_exchange(
    error: Exception, broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not ending.is_broken_exchange(error)  # without a group
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert ending.is_broken_exchange(error) == broken


def test_restarts_are_bounded_and_a_failure_is_no_reason_for_one(slurm: dict[str, Any]) -> None:
    stop = StopRequest()
    stop.receive(signal.SIGUSR2)
    with pytest.raises(
        InputError, match="restart 2 was the last of --max-restarts 2; to go on, submit again"
    ):
        task()._come_back(place(restart=2), stop, "stopped", [])
    with pytest.raises(RuntimeError, match="rank 1 failed: the job is not requeued"):
        task()._come_back(place(), stop, "stopped", [1])
    assert slurm["requeued"] == []


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in PATH, with an scontrol that writes down how it is called and exits with "code"."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scontrol = folder / "scontrol"
    scontrol.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "busy" >&2\nexit $(cat {tmp_path}/code)\n'
    )
    scontrol.chmod(0o755)
    (folder / "sleep").symlink_to("/bin/true")
    (tmp_path / "code").write_text("1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr("slurm.ending.time.sleep", lambda seconds: None)
    for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    for name, value in {"JOB_ID": "8", "RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return folder


def batch_script(logs: Path, before: str) -> int:
    """Exit code of the batch script's end, after a command in place of srun."""
    lines = [before, *ending.granting_lines(logs)]
    return subprocess.run(["bash", "-c", "\n".join(lines)], timeout=30, capture_output=True).returncode


def test_what_a_process_cannot_requeue_the_batch_script_does(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Refused three times, or without scontrol, as in a container. A wish counts for its start alone."""
    logs = tmp_path / "ein Lauf – é ' $HOME"
    logs.mkdir()
    monkeypatch.setenv("SUBMITIT_FOLDER", str(logs))
    assert not ending.requeue("7")
    assert (tmp_path / "calls").read_text() == "requeue 7\n" * 3
    assert "scontrol requeue 7 failed: busy; it is left to the batch script" in capfd.readouterr().out
    (tmp_path / "code").write_text("0")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    assert batch_script(logs, "exit_with() { return 9; }; exit_with") == 9  # of another start: the code stays
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert batch_script(logs, "false") == 0
    assert (tmp_path / "calls").read_text() == "requeue 7\n" * 3 + "requeue 8\n"
    assert batch_script(logs, "false") == 1 and not list(logs.iterdir())  # once
    assert ending.requeue("7") and not list(logs.iterdir())
    (tmp_path / "calls").unlink()
    ending.wish_file().touch()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")  # the last task has the array's id
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    assert batch_script(logs, "false") == 0
    assert (tmp_path / "calls").read_text() == "requeue 8_2\n"

    monkeypatch.setenv("PATH", "/nowhere")
    assert not ending.requeue("7") and ending.wish_file().exists()
    assert "there is no scontrol here; it is left to the batch script" in capfd.readouterr().out


def test_the_wish_is_there_before_slurm_is_asked(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The controller may hang, and the process be ended meanwhile."""
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    monkeypatch.setattr(ending, "TRY_SECONDS", 0.3)
    scontrol = (
        f"#!/bin/sh\n[ -e {ending.wish_file()} ] && echo wished >> {tmp_path}/calls\nexec /bin/sleep 30\n"
    )
    (programs / "scontrol").write_text(scontrol)
    assert not ending.requeue("7")
    assert (tmp_path / "calls").read_text() == "wished\n" * 3


def test_a_requeue_that_nobody_can_do_is_told(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path / "unheard"))
    with pytest.raises(RuntimeError, match="scontrol requeue 7 failed: busy; do it by hand"):
        ending.requeue("7")
    monkeypatch.setenv("SUBMITIT_FOLDER", str(tmp_path))
    ending.requeue("7")
    assert batch_script(tmp_path, "true") == 1  # nor the script: a job that is not over has not succeeded


def test_a_process_that_slurm_does_not_answer_says_so_at_its_start(
    slurm: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ending.hears_nothing("7") == ""
    slurm["state"] = None
    assert "the batch script requeues the job" in (said := ending.hears_nothing("7")) and "\n" not in said


def test_processes_that_do_not_meet_after_a_restart_are_given_two_more(
    slurm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a first start none; the first process to fail requeues, another one leaves in order, too."""

    def again(restart: int, rank: int = 0, most: int = 9) -> bool:
        where = place(rank, restart)
        made = task(max_restarts=most)
        return made._meet_again(where, stop, Traces(tmp_path, where), "rank 1 on node2 did not come")

    stop = StopRequest()
    assert not again(0)
    assert again(1) and slurm["requeued"] == ["7"]
    assert again(1, rank=1) and slurm["requeued"] == ["7"]
    assert "rank 1 on node2 did not come: requeueing, 1 of 2 times in a row" in capsys.readouterr().out
    assert again(2, rank=1) and not again(3)
    assert again(5) and not again(6, most=6)  # restart 4 went well
    assert slurm["requeued"] == ["7"] * 3
    for state in ("CANCELLED", "PENDING"):
        slurm["state"] = state
        assert not again(8)
    slurm["state"] = None  # no answer, as in a container
    assert again(8) and slurm["requeued"] == ["7"] * 4
    stop.receive(signal.SIGTERM)
    assert not again(10)
    assert not Traces(tmp_path, place(restart=10)).path.with_name("unmet_restart_10.txt").exists()


def test_a_problem_while_the_job_is_requeued_is_told_and_fails_the_start(
    slurm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(job: str) -> bool:
        raise RuntimeError("do it by hand")

    monkeypatch.setattr("slurm.ending.requeue", refuse)
    where = place(restart=1)
    assert not task()._meet_again(where, StopRequest(), Traces(tmp_path, where), "rank 1 did not come")
    (tmp_path / "file").touch()  # no folder for traces there
    assert not task()._meet_again(
        where, StopRequest(), Traces(tmp_path / "file", where), "rank 1 did not come"
    )
    assert [line[:19] for line in capsys.readouterr().out.splitlines() if line.startswith("error")] == [
        "error: do it by han",
        "error: [Errno 20] N",
    ]


def test_a_process_that_hangs_at_the_meeting_has_the_job_requeued(
    slurm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its last words: it is ended right after them."""

    def hang(place: Place, backend: str, folder: Path, patience: float, last_words: Any) -> None:
        last_words("rank 1 on node2 is missing")
        raise Unmet("ended here")

    monkeypatch.setattr("slurm.rendezvous.join", hang)
    (tmp_path / "launch.json").write_text(json.dumps({"token": "abc"}))
    monkeypatch.chdir(tmp_path)
    made = task(
        str(tmp_path),
        config=str(ROOT / "configs/toy/maskformer_tiny.yaml"),
        overrides=("MODEL.DEVICE", "cpu"),
        working_directory=str(tmp_path),
    )
    where = place(restart=1)
    with pytest.raises(Unmet, match="ended here"):
        made._train(where, StopRequest(), Traces(tmp_path, where))
    assert slurm["requeued"] == ["7"]
    assert "rank 1 on node2 is missing; it was here" in Traces(tmp_path, where).path.read_text()


def test_a_start_without_a_meeting_ends_the_process_in_order(
    slurm: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With exit code 0 where it has requeued the job, else with the error."""

    def train(self: TrainingTask, *_: Any) -> None:
        raise Unmet("rank 1 on node2 did not come")

    monkeypatch.setattr(TrainingTask, "_train", train)
    monkeypatch.setenv("SUBMITIT_DEBUG_JOB_ID", "1")  # leaves the signals of this process alone
    for restart, left in ((1, SystemExit), (0, Unmet)):
        monkeypatch.setattr("slurm.place.this_place", lambda restart=restart: place(restart=restart))
        with pytest.raises(left):
            task(str(tmp_path))()
    assert slurm["requeued"] == ["7"]


def test_a_folder_that_is_not_shared_or_was_taken_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="rank 1 on node1 does not see .*launch.json .*that all nodes share"):
        task(str(tmp_path))._check_folder(place(rank=1))
    (tmp_path / "launch.json").write_text(json.dumps({"token": "other"}))
    with pytest.raises(InputError, match="was submitted again since"):
        task(str(tmp_path))._check_folder(place())
    (tmp_path / "launch.json").write_text(json.dumps({"token": "abc"}))
    task(str(tmp_path))._check_folder(place())


def test_gpus_that_torch_does_not_see_are_no_reason_to_train_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = str(ROOT / "configs/toy/maskformer_tiny.yaml")
    with pytest.raises(InputError, match="the job has 2 GPUs, but torch sees none"):
        task()._backend(config, [])
    assert task(gpus=0)._backend(config, []) == "gloo"
    assert task()._backend(config, ["MODEL.DEVICE", "cpu"]) == "gloo"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert task()._backend(config, []) == "nccl"


def test_a_trace_tells_rank_host_and_error(tmp_path: Path) -> None:
    mine, other = Traces(tmp_path, place()), Traces(tmp_path, place(rank=1))
    assert mine.failed_peers() == []
    try:
        raise ValueError("here")
    except ValueError as error:
        other.write(error)
    text = (tmp_path / "traces/7/rank_1_restart_0.txt").read_text()
    assert text.startswith("rank 1 of 2 on ") and text.endswith("ValueError: here\n")
    assert mine.failed_peers() == [1] and other.failed_peers() == []
    assert Traces(tmp_path, place(restart=1)).failed_peers() == []  # of the start before


# Hangs where no Python handler runs, as in an exchange with a process that is gone.
HANGS = """
import ctypes, signal, sys
from pathlib import Path
from slurm.place import Place
from slurm.traces import Traces
signal.signal(signal.SIGTERM, lambda *_: print("never"))
Traces(Path(sys.argv[1]), Place(0, 2, 0, 2, ("node1",), "7", 0, "slurm")).watch(lambda: print("warned"))
def in_an_exchange():
    print("hangs", flush=True)  # here: the signal may come before this has returned
    while True:
        ctypes.CDLL(None).sleep(1000)
in_an_exchange()
"""


def test_sigterm_ends_a_hanging_process_if_a_peer_failed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HANGS, str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == "hangs\n"
        Traces(tmp_path, place(rank=1)).write(ValueError("first"))
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 1 and time.monotonic() - signalled < 8
        text = (tmp_path / "traces/7/rank_0_restart_0.txt").read_text()
        assert "ended because rank 1 failed; it was here" in text and "in in_an_exchange" in text
    finally:
        process.kill()
        process.communicate()


# First processes whose training hangs where no handler runs, and one that only takes long to leave.
IN_C = """
lock, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)
c.pthread_mutex_lock(lock)
c.pthread_mutex_lock(lock)"""
FINISHES = """
while not stop.requested:
    time.sleep(0.1)
time.sleep(2.5)"""
# Imports once, then forks a process for each {job: [what it does, restart]}, which reports to a file.
LEAVES = """
import ctypes, json, os, sys, time
from mask_former.training.run_lock import locked
from slurm import place, task
from slurm.place import Place
from tests.test_slurm_task import task as make

def process(folder, job, does, restart):
    file = os.open(f"{folder}/{job}", os.O_CREAT | os.O_WRONLY)
    os.dup2(file, 1)
    place.this_place = lambda: Place(0, 2, 0, 2, ("node1",), job, restart, "slurm")
    def train(self, place, stop, traces):
        print(os.getpid(), flush=True)
        exec(does, globals() | locals())
    task.TrainingTask._train = train
    run = f"{folder}/{job} run"
    lock = locked(run)
    lock.__enter__()
    make(run, grace=4.0)()

children = []
for job, (does, restart) in json.loads(sys.argv[2]).items():
    child = os.fork()
    if not child:
        process(sys.argv[1], job, does, restart)
        os._exit(0)
    children.append(child)
print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]))
"""


def test_a_first_process_that_hangs_is_requeued_too(tmp_path: Path) -> None:
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho JobId=7 JobState=RUNNING\n')
    scontrol.chmod(0o755)
    cases = {  # job: what it does, restart
        "hangs": (IN_C, 1),
        "bounded": (IN_C, 2),
        "leaves": (FINISHES, 1),  # its handler has run: it gets more time to leave by itself
    }
    parent = subprocess.Popen(
        [sys.executable, "-c", LEAVES, str(tmp_path), json.dumps(cases)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        for job in cases:
            while not (tmp_path / job).exists() or "\n" not in (tmp_path / job).read_text():
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.kill(int((tmp_path / job).read_text()), signal.SIGUSR2)
        codes, _ = parent.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()
    assert json.loads(codes) == [0, 1, 0]
    said = {job: (tmp_path / job).read_text() for job in cases}
    assert "hanging when it should stop (SIGUSR2): requeueing, restart 2 of 2\n" in said["hangs"]
    assert "not requeued: restart 2 was the last of --max-restarts 2" in said["bounded"]
    assert said["leaves"].count("\n") == 1
    for job in cases:  # it says that it writes no more
        assert (tmp_path / f"{job} run/run.lock").read_text() == ""
    (trace,) = (tmp_path / "hangs run/traces/hangs").iterdir()
    assert "hanging when it should stop; it was here:" in (text := trace.read_text()) and " in train" in text
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line for line in calls if line.startswith("requeue")] == ["requeue hangs"]
