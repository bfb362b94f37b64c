"""What runs in each process of a job: find the others, train, and leave so that the job can come back.

Files alone carry a run from one start of its job to the next, so a start after a time limit, preemption, a
failing node, kill -9 or `scontrol requeue` is the same: --resume. On SIGUSR2 (a time limit or preemption is
near) and SIGTERM (also when cancelled) all processes save the same iteration; then the first one has the job
requeued, once, if Slurm says that it runs on.

The heavy imports come late: what comes before this module's handlers are there is lost (slurm/plan.py).
"""

import json
import os
import shlex
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from mask_former.training.stopping import StopRequest
    from slurm.place import Place
    from slurm.traces import Traces

FINISHED_FILE = "finished.json"
LEAVE_SECONDS = 20.0  # for a failed process to end in order
SIGNAL_SECONDS = 3.0  # for this process's own signal to come, after another process's
LONGEST_GRACE = 120.0  # of use to a first process that hangs: srun waits so long, once the others have left
UNMET_IN_A_ROW = 2  # restarts in which the processes do not meet, before the job ends
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
    grace: float = 90.0  # seconds from SIGUSR2 to the end

    def __call__(self) -> str:
        early = _remember_signals() if "SUBMITIT_DEBUG_JOB_ID" not in os.environ else None
        from mask_former.errors import is_input_error, one_line
        from mask_former.training.stopping import STOP_SIGNALS, RunStopped, StopRequest
        from slurm.ending import is_broken_exchange, leave_within
        from slurm.place import Unmet, this_place
        from slurm.traces import Traces

        place, stop, leaving = this_place(), StopRequest(), threading.Lock()
        traces = Traces(Path(self.run_dir), place)

        def warned() -> None:
            if place.rank == 0 and place.cluster == "slurm":
                arguments = (place, stop, leaving, traces)
                threading.Thread(target=self._come_back_late, args=arguments, daemon=True).start()

        if early is not None:
            stop.listen(*STOP_SIGNALS)
            traces.watch(warned)
            for number in early:
                stop.receive(number)
            if signal.SIGUSR2 in early:
                warned()
        try:
            try:
                self._train(place, stop, traces)
            finally:
                leaving.acquire()  # once: where the thread has it, that ends this process
        except RunStopped as stopped:
            self._come_back(place, stop, str(stopped), traces.failed_peers())
        except Exception as error:
            if stop.signal == signal.SIGUSR2 and is_broken_exchange(error) and not traces.failed_peers():
                self._come_back(place, stop, "stopped on request in an exchange", [])
            if isinstance(error, Unmet) and self._meet_again(place, stop, traces, str(error)):
                sys.exit(0)
            traces.write(error)
            if is_input_error(error):
                print(f"error: {one_line(error)} (rank {place.rank} on {os.uname().nodename})", flush=True)
            if early is not None:
                leave_within(LEAVE_SECONDS, place)
            raise
        return self.run_dir

    def checkpoint(self, *_: Any) -> Any:
        """What submitit would requeue: the same, since the run's state lies in its folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    __submitit_checkpoint__ = checkpoint

    def _train(self, place: "Place", stop: "StopRequest", traces: "Traces") -> None:
        from mask_former.training.lease import Claim
        from slurm.ending import hears_nothing
        from slurm.rendezvous import join
        from tools import train_net

        os.chdir(self.working_directory)
        self._check_folder(place)
        command = ["--config-file", self.config, "--resume", *self.flags, *self.overrides]
        args = train_net.parser().parse_args([*command, "OUTPUT_DIR", self.run_dir])

        def last_words(line: str) -> None:
            print(f"error: {line}", flush=True)
            traces.write_where_it_is(line)
            self._meet_again(place, stop, traces, line)

        backend = self._backend(args.config_file, args.opts)
        join(place, backend, Path(self.run_dir), self.patience, last_words)
        if place.rank == 0:
            print(f"{place.size} process(es) on {', '.join(place.hosts)} work together", flush=True)
            warning = hears_nothing(place.job) if place.cluster == "slurm" else ""
            if warning:
                print(f"warning: {warning}", flush=True)
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
        from slurm.ending import requeue, state_of

        if failed_peers:
            raise RuntimeError(f"rank {failed_peers[0]} failed: the job is not requeued")
        if place.rank != 0 or place.cluster == "debug":
            sys.exit(0)
        _wait_for_signal(stop)
        said = f"{stopped} ({stop.signal.name if stop.signal else 'of another process'})"
        if place.cluster == "local":
            print(f"{said}: {'ending' if stop.signal == signal.SIGTERM else 'starting again'}", flush=True)
            sys.exit(0 if stop.signal == signal.SIGTERM else LOCAL_REQUEUE_CODE)
        state, ending = state_of(place.job, self.grace)
        again = f"to go on, submit again with --run-dir {shlex.quote(self.run_dir)}"
        if state not in ("RUNNING", None):
            print(f"{said}: Slurm ends the job, or has requeued it itself", flush=True)
            sys.exit(0)
        if stop.signal == signal.SIGTERM and not ending:
            raise InputError(
                f"{said}, and not requeued: Slurm does not answer; {again}"
                if state is None
                else f"{said}, though the job is neither preempted nor near its time limit: a process of the "
                f"job was killed (out of memory?); {again}"
            )
        if place.restart >= self.max_restarts:
            raise InputError(
                f"{said}, and not requeued: restart {place.restart} was the last of --max-restarts "
                f"{self.max_restarts}; {again}"
            )
        print(f"{said}: requeueing, restart {place.restart + 1} of {self.max_restarts}", flush=True)
        # A mere wish waits for the batch script, which goes on when all have left: srun ends those that hang
        # after a failure alone. The script's own exit code hides it.
        sys.exit(0 if requeue(place.job) else 1)

    def _meet_again(self, place: "Place", stop: "StopRequest", traces: "Traces", line: str) -> bool:
        """Whether the job starts again when its processes do not meet: the first one to say so requeues it.

        Not at a first start, where a setting is wrong rather than a node bad, nor for ever: UNMET_IN_A_ROW.
        Nor when the job was cancelled, which may be seen in this process's signal or in Slurm's word alone.
        """
        from slurm.ending import requeue, state_of

        before = traces.unmet_before()
        if place.cluster != "slurm" or not 0 < place.restart < self.max_restarts or before >= UNMET_IN_A_ROW:
            return False
        if stop.signal == signal.SIGTERM or state_of(place.job, self.grace)[0] not in ("RUNNING", None):
            return False
        try:
            if traces.note_unmet(line):
                print(f"{line}: requeueing, {before + 1} of {UNMET_IN_A_ROW} times in a row", flush=True)
                requeue(place.job)
        except (OSError, RuntimeError) as problem:
            print(f"error: {problem}", flush=True)
            return False
        return True

    def _come_back_late(
        self, place: "Place", stop: "StopRequest", leaving: threading.Lock, traces: "Traces"
    ) -> None:
        """Have the job started again though the main thread does not leave: it hangs in an exchange, say.

        A checkpoint may be older then. In a thread, on SIGUSR2; `leaving` is held by whoever leaves.
        """
        from mask_former.training.run_lock import empty

        grace = min(self.grace, LONGEST_GRACE)
        time.sleep(grace / 2)
        if stop.requested:  # the main thread has taken the signal: it may still be saving
            time.sleep(grace / 4)
        if not leaving.acquire(blocking=False):
            return
        stop.signal = stop.signal or signal.SIGUSR2
        said = "hanging when it should stop"
        code: Any = 1
        try:
            self._come_back(place, stop, said, traces.failed_peers())
        except SystemExit as left:
            code = left.code
        except Exception as error:
            said = f"{said}: {error}"
            print(f"error: {error}", flush=True)
        finally:
            traces.write_where_it_is(said)  # last: peers that see it take it for a failure
            empty(self.run_dir)
            os._exit(code)


def _remember_signals() -> list[int]:
    """The signals that come before the real handlers are there, in place of submitit's handlers."""
    came: list[int] = []
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, lambda caught, _: came.append(caught))
    signal.signal(signal.SIGCONT, signal.SIG_DFL)
    return came


def _wait_for_signal(stop: "StopRequest") -> None:
    """Another process's signal may come a moment before this one's, which tells why."""
    deadline = time.monotonic() + SIGNAL_SECONDS
    while stop.signal is None and time.monotonic() < deadline:
        time.sleep(0.05)
