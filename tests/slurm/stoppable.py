"""Runs that listen to SIGUSR2, each in a process group of its own (tests/resumable.py has the server).

A run that was stopped says "stopped after N" and exits with STOPPED. Evaluations take an hour longer while
the file that SLOW_EVALUATION names is there. Also run as a script: the server itself.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STOPPED = 40


def start_server(data: Path, slow_evaluation: Path) -> Any:
    """A RunServer whose runs can be stopped."""
    from tests.resumable import RunServer

    server = RunServer.__new__(RunServer)
    server.process = subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "DETECTRON2_DATASETS": str(data),
            "OMP_NUM_THREADS": "1",
            "SLOW_EVALUATION": str(slow_evaluation),
        },
        cwd=ROOT,
    )
    return server


def cli(arguments: Sequence[str]) -> int:
    from mask_former.training.stopping import RunStopped, StopRequest
    from tools import train_net

    stop = StopRequest()
    stop.listen(signal.SIGUSR2)
    try:
        train_net.main(train_net.parser().parse_args(arguments), stop=stop)
    except RunStopped as stopped:
        print(f"stopped after {stopped.iteration}")
        return STOPPED
    return 0


def slow_down_evaluations(while_there: Path) -> None:
    from mask_former import trainer

    evaluate = trainer.evaluate

    def slow_evaluate(*arguments: Any) -> Any:
        if while_there.exists():
            print("evaluation begins", flush=True)
            for _ in range(36000):  # handlers run between bytecodes: a long sleep does not see a signal that
                time.sleep(0.1)  # came just before it
        return evaluate(*arguments)

    trainer.evaluate = slow_evaluate


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from tests.resumable import serve
    from tools import train_net

    train_net.cli = cli
    slow_down_evaluations(Path(os.environ["SLOW_EVALUATION"]))
    serve(0.0)
