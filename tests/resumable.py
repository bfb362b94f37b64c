"""Runs that are killed, really: a process that imports everything once and forks the runs to be killed.

    server = RunServer(data)
    run = server.start(command)       # tools/train_net.py with this command line, in a process of its own
    os.killpg(run, SIGKILL); server.wait(run)

Importing PyTorch takes seconds, a fork milliseconds. Also run as a script: the server itself.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KILLED = -signal.SIGKILL


class RunServer:
    """Starts runs on a data set (DETECTRON2_DATASETS) and tells how they ended."""

    def __init__(self, data: Path, slow_writes: float = 0.0) -> None:
        """`slow_writes`: seconds that a checkpoint takes between its first and its last bytes."""
        environment = {**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(slow_writes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )

    def _ask(self, **question: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, command: Sequence[str], output: Path) -> int:
        """Process (and group) id of a new run whose output goes to the end of a file."""
        return self._ask(start=list(command), output=str(output))

    def wait(self, run: int) -> int:
        """Exit code of a run when it is over, or minus the signal that ended it."""
        return self._ask(wait=run)

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:  # a machine that stands still is no fault of the runs
            self.process.kill()


def serve(slow_writes: float) -> None:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tests.tiny  # noqa: F401  (registers the tiny backbone)
    from mask_former.errors import run_cli
    from tools import train_net

    if slow_writes:
        slow_down_checkpoints(slow_writes)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the runs print must not mix with the answers
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            child = os.fork()
            if not child:
                os.setpgid(0, 0)
                log = os.open(question["output"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
                os.dup2(log, 1)
                os.dup2(log, 2)
                code = run_cli(lambda: train_net.cli(question["start"]))  # noqa: B023
                sys.stdout.flush()
                os._exit(code)
            answer = child
        else:
            _, status = os.waitpid(question["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def slow_down_checkpoints(seconds: float) -> None:
    """Every write of a checkpoint stops half-way for a while, as on a slow disk."""
    import io
    import time
    from typing import BinaryIO

    import torch

    save = torch.save

    def slow_save(content: Any, file: BinaryIO) -> None:
        whole = io.BytesIO()
        save(content, whole)
        raw = whole.getvalue()
        file.write(raw[: len(raw) // 2])
        file.flush()
        time.sleep(seconds)
        file.write(raw[len(raw) // 2 :])

    torch.save = slow_save


if __name__ == "__main__":
    serve(float(sys.argv[1]))
