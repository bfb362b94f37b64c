"""The local executor: the same code in real processes without Slurm, stopped, killed, and resumed."""

import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.jobs import (
    ITERATIONS,
    Workplace,
    assert_same_run,
    log,
    prepare,
    processes_naming,
    starts,
    steps,
)

LOCAL = ("--gpus", "0", "--tasks", "2", "--executor", "local")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = prepare(tmp_path_factory.mktemp("workplace"), None)
    yield place
    place.launcher.close()


def test_stopped_and_killed_it_resumes(shop: Workplace, tmp_path: Path) -> None:
    """First the second process alone is asked to stop: both save the same iteration, and start again. Then
    submitit's controller and all that it started are ended by kill -9.
    """
    run = tmp_path / "run"
    said = shop.submit(tmp_path / "undisturbed", *LOCAL)
    assert f"iter: {ITERATIONS - 1}" in said  # it is followed
    assert len(steps(tmp_path / "undisturbed")) == ITERATIONS
    answers = []
    launch = threading.Thread(target=lambda: answers.append(shop.submit(run, *LOCAL, expect=1)))
    launch.start()
    shop.wait_for_rows(run, 2)
    for process in processes_naming(str(run), "SUBMITIT_LOCAL_GLOBALID=1"):
        os.kill(process, signal.SIGUSR2)
    wait_until(lambda: "starting again" in log(run))
    (stopped,) = re.findall(r"stopped on request after iteration (\d+) \(of another process\)", log(run))
    shop.wait_for_rows(run, 6)
    for process in processes_naming(str(run)):
        os.kill(process, signal.SIGKILL)
    launch.join(30)
    assert f"not finished: {run}" in answers[0]
    shop.submit(run, *LOCAL)
    first, second, third = (start["start_iteration"] for start in starts(run))
    assert (first, second) == (0, int(stopped) + 1) and third >= 4
    assert_same_run(run, tmp_path / "undisturbed")
