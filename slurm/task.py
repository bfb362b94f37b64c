"""What runs in each process of a job: find the others, train, and leave so that the job can come back.

Files alone carry a run from one start of its job to the next, so a start after a time limit, preemption, a
failing node, kill -9 or `scontrol requeue` is the same: --resume. On SIGUSR2 (a time limit or preemption is
near) and SIGTERM (also when cancelled) all processes save the same iteration; then the first one has the job
requeued, once, if Slurm says that it runs on.

The heavy imports come late: until this module's handlers are there, SIGUSR2 kills.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mask_former.training.stopping import StopRequest
    from slurm.rendezvous import Place

FINISHED_FILE = "finished.json"
LEAVE_SECONDS = 20.0  # for a failed process to end in order
SCONTROL_TRIES = 3
LOCAL_REQUEUE_CODE = 144  # what submitit's local controller takes as a wish to start again


@dataclass(frozen=True)
class TrainingTask:
    """A run, as submitit pickles it: called in every process of every start of its job."""

    run_dir: str
    config: str  # in the snapshot of the code
    overrides: tuple[str, ...]
    flags: tuple[str, ...]  # of tools/train_net.py
    working_directory: str  # of whoever submitted: relative paths start there
    gpus: int  # of the whole job
    max_restarts: int
    token: str  # in the run folder's launch.json: proves that this is the folder of the submission
    patience: float  # seconds for the processes to find each other

    def __call__(self) -> str:
        early = _remember_signals() if "SUBMITIT_DEBUG_JOB_ID" not in os.environ else None
        from mask_former.errors import is_input_error, one_line
        from mask_former.training.stopping import STOP_SIGNALS, RunStopped, StopRequest
        from slurm.rendezvous import this_place
        from slurm.traces import Traces

        place, stop = this_place(), StopRequest()
        traces = Traces(Path(self.run_dir), place)
        if early is not None:
            stop.listen(*STOP_SIGNALS)
            traces.watch()
            for number in early:
                stop.receive(number)
        try:
            self._train(place, stop)
        except RunStopped as stopped:
            self._come_back(place, stop, str(stopped), traces.failed_peers())
        except Exception as error:
            if stop.signal == signal.SIGUSR2 and _is_broken_exchange(error) and not traces.failed_peers():
                self._come_back(place, stop, "stopped on request in an exchange", [])
            traces.write(error)
            if is_input_error(error):
                print(f"error: {one_line(error)} (rank {place.rank} on {os.uname().nodename})", flush=True)
            if early is not None:
                _leave_within(LEAVE_SECONDS, place)
            raise
        return self.run_dir

    def checkpoint(self, *_: Any) -> Any:
        """What submitit would requeue: the same, since the run's state lies in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint

    def _train(self, place: "Place", stop: "StopRequest") -> None:
        from mask_former.training.lease import Claim
        from slurm.rendezvous import join
        from tools import train_net

        os.chdir(self.working_directory)
        self._check_folder(place)
        command = ["--config-file", self.config, "--resume", *self.flags, *self.overrides]
        args = train_net.parser().parse_args([*command, "OUTPUT_DIR", self.run_dir])
        join(place, self._backend(args.config_file, args.opts), self.patience)
        if place.rank == 0:
            print(f"{place.size} process(es) on {', '.join(place.hosts)} work together", flush=True)
        train_net.main(args, stop=stop, claim=Claim(place.job, place.restart))
        if place.rank == 0:
            self._mark_finished(args.config_file, args.opts)

    def _check_folder(self, place: "Place") -> None:
        from mask_former.errors import InputError

        try:
            said = json.loads((Path(self.run_dir) / "launch.json").read_bytes())["token"]
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"rank {place.rank} on {place.host_of(place.rank)} does not see {self.run_dir}/launch.json "
                f"({type(error).__name__}): choose a --run-dir on a file system that all nodes share"
            ) from error
        if said != self.token:
            raise InputError(
                f"{self.run_dir} was submitted again since: this job gives way; cancel it, or choose another "
                "--run-dir"
            )

    def _backend(self, config: str, overrides: list[str]) -> str:
        """nccl or gloo, as MODEL.DEVICE says; InputError where Slurm gave GPUs and torch sees none."""
        import torch

        from mask_former.errors import InputError
        from tools.project import read_config

        if not read_config(config, overrides).MODEL.DEVICE.startswith("cuda"):
            return "gloo"
        if not torch.cuda.is_available():
            if not self.gpus:
                return "gloo"
            raise InputError(
                f"the job has {self.gpus} GPUs, but torch sees none on {os.uname().nodename}: run "
                "tools/doctor.py there, or train on the CPU by --gpus 0"
            )
        return "nccl"

    def _mark_finished(self, config: str, overrides: list[str]) -> None:
        from mask_former.evaluation.metrics_file import write_json
        from mask_former.training.run_lock import now
        from tools.project import read_config

        said = {"max_iter": read_config(config, overrides).SOLVER.MAX_ITER, "time": now()}
        write_json(said, Path(self.run_dir) / FINISHED_FILE)

    def _come_back(
        self, place: "Place", stop: "StopRequest", stopped: str, failed_peers: list[int]
    ) -> NoReturn:
        """Have the job started again, by the first process; the others leave."""
        from mask_former.errors import InputError

        if failed_peers:
            raise RuntimeError(f"rank {failed_peers[0]} failed: the job is not requeued")
        if place.rank != 0 or place.cluster == "debug":
            sys.exit(0)
        said = f"{stopped} ({stop.signal.name if stop.signal else 'of another process'})"
        if place.cluster == "local":
            print(f"{said}: {'ending' if stop.signal == signal.SIGTERM else 'starting again'}", flush=True)
            sys.exit(0 if stop.signal == signal.SIGTERM else LOCAL_REQUEUE_CODE)
        if not _runs_on(place.job, unknown=stop.signal != signal.SIGTERM):
            print(f"{said}: Slurm ends the job, or has requeued it itself", flush=True)
            sys.exit(0)
        if place.restart >= self.max_restarts:
            raise InputError(
                f"{said}, and not requeued: restart {place.restart} was the last of --max-restarts "
                f"{self.max_restarts}; to go on, submit again with --run-dir {shlex.quote(self.run_dir)}"
            )
        print(f"{said}: requeueing, restart {place.restart + 1} of {self.max_restarts}", flush=True)
        _requeue(place.job)
        sys.exit(0)


def _remember_signals() -> list[int]:
    """The signals that come before the real handlers are there, in place of submitit's handlers."""
    came: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda caught, _: came.append(caught))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    return came


def _is_broken_exchange(error: Exception) -> bool:
    """Whether a peer has gone in an exchange: when an evaluation is given up, one leaves before another."""
    import torch.distributed as dist

    return isinstance(error, (dist.DistError, RuntimeError)) and dist.is_initialized()


def _leave_within(seconds: float, place: "Place") -> None:
    """End this process by force if it has not ended by then; its peers on this machine hear of it."""

    def end() -> None:
        time.sleep(seconds)
        os._exit(1)

    threading.Thread(target=end, name="leave", daemon=True).start()
    if place.cluster == "local" and place.size > 1:  # Slurm's srun does that by itself
        os.kill(os.getppid(), signal.SIGTERM)


def _runs_on(job: str, unknown: bool) -> bool:
    """Whether the job is running, and soon at its limit, rather than cancelled or requeued already.

    `unknown`: the answer when Slurm gives none.
    """
    from slurm.cluster import job_state

    state = job_state(job)
    return unknown if state is None else state == "RUNNING"


def _requeue(job: str) -> None:
    for _ in range(SCONTROL_TRIES):
        try:
            answer = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            reason = str(error)
        else:
            if answer.returncode == 0:
                return
            reason = " ".join(answer.stderr.split())
        time.sleep(2.0)
    raise RuntimeError(f"scontrol requeue {job} failed: {reason}; do it by hand, the run is saved")
