"""A run that is asked to stop saves the iteration it is in, leaves, and goes on as if it had not been."""

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toy_run import arguments, render

from mask_former.data.loader import build_training_loader
from mask_former.training.stopping import RunStopped, StopRequest
from tests.slurm.stoppable import STOPPED, start_server
from tests.test_resume import OPTIONS, assert_same_run, rows, run_to_end, steps_done, tag, wait_until


@pytest.fixture
def request_() -> Iterator[StopRequest]:
    """One that listens to SIGUSR2 in this process."""
    before = signal.getsignal(signal.SIGUSR2)
    stop = StopRequest()
    stop.listen(signal.SIGUSR2)
    yield stop
    signal.signal(signal.SIGUSR2, before)


def test_a_signal_is_a_request_and_the_first_one_counts(request_: StopRequest) -> None:
    assert not request_.requested
    os.kill(os.getpid(), signal.SIGUSR2)
    request_.receive(signal.SIGTERM)
    assert request_.requested and request_.signal == signal.SIGUSR2


def test_a_signal_ends_what_may_be_interrupted_once(request_: StopRequest) -> None:
    with pytest.raises(RunStopped) as stopped, request_.may_interrupt(41):
        try:
            os.kill(os.getpid(), signal.SIGUSR2)
            pytest.fail("the body goes on")
        finally:
            os.kill(os.getpid(), signal.SIGUSR2)  # does not disturb the way out
    assert stopped.value.iteration == 41


def test_a_request_made_before_keeps_the_body_from_starting(request_: StopRequest) -> None:
    request_.receive(signal.SIGUSR2)
    with pytest.raises(RunStopped), request_.may_interrupt(5):
        pytest.fail("an evaluation begins")


def test_after_the_body_a_signal_interrupts_nothing(request_: StopRequest) -> None:
    with request_.may_interrupt(5):
        pass
    os.kill(os.getpid(), signal.SIGUSR2)
    assert request_.requested


def test_forked_children_ignore_the_request_and_can_be_terminated(request_: StopRequest) -> None:
    """Such as evaluators' worker pools, which end their children by SIGTERM."""
    request_.listen(signal.SIGTERM)
    try:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGUSR2)
        child.join(0.3)
        assert child.is_alive()
        child.terminate()
        child.join(10)
        assert child.exitcode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def test_loader_workers_ignore_the_request_and_outlast_sigterm(
    request_: StopRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step that the trainer wants to save needs them; a second later they are gone."""
    monkeypatch.setattr("mask_former.training.stopping.WORKER_SECONDS", 1)

    def mapper(record: dict[str, Any]) -> dict[str, Any]:
        return {"pid": os.getpid()}

    loader = build_training_loader([{"image_id": 0}], mapper, seed=0, batch_size=1, num_workers=1)
    batches = iter(loader)
    worker = next(batches)[0]["pid"]
    for number in (signal.SIGUSR2, signal.SIGTERM):
        os.kill(worker, number)
    assert next(batches)[0]["pid"] == next(batches)[0]["pid"] == worker
    with pytest.raises(RuntimeError, match="killed by signal: Alarm|exited unexpectedly"):
        for _ in range(1000):
            time.sleep(0.01)
            next(batches)
    assert not request_.requested


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return render(tmp_path_factory.mktemp("datasets"))


def group_is_gone(run: int) -> bool:
    try:
        os.killpg(run, 0)
    except ProcessLookupError:
        return True
    return False


def test_stopped_in_a_step_and_in_an_evaluation_a_run_is_the_undisturbed_one(
    data: Path, tmp_path: Path
) -> None:
    """The signals go to the run's whole group, loader workers too, as a scheduler's do."""
    folder, log, slow = tmp_path / "run", tmp_path / "run.log", tmp_path / "slow"
    server = start_server(data, slow)
    short = OPTIONS | {"SOLVER__MAX_ITER": 12, "TEST__EVAL_PERIOD": 8}
    run_to_end(server, tmp_path / "undisturbed", **short)

    run = server.start(arguments(folder, **short), log)
    assert wait_until(lambda: tag(folder) != "" and steps_done(folder) >= 5)  # where no checkpoint is due
    os.killpg(run, signal.SIGUSR2)
    assert server.wait(run) == STOPPED
    found = re.findall(r"stopped after (\d+)", log.read_text())
    assert len(found) == 1 and tag(folder) == f"model_{int(found[0]):07d}.pth"
    assert rows(folder)[-1]["iteration"] == int(found[0]) < 7
    assert wait_until(lambda: group_is_gone(run), 10)  # its loader workers too

    slow.touch()
    run = server.start(arguments(folder, "--resume", **short), log)
    assert wait_until(lambda: "evaluation begins" in log.read_text())
    signalled = time.monotonic()
    os.killpg(run, signal.SIGUSR2)
    assert server.wait(run) == STOPPED and time.monotonic() - signalled < 10
    assert "stopped after 7" in log.read_text() and "Traceback" not in log.read_text()
    assert not any("evaluated" in row for row in rows(folder))

    slow.unlink()
    run_to_end(server, folder, "--resume", **short)
    server.close()
    assert "the evaluation of iteration 7 comes first" in log.read_text()
    assert_same_run(folder, tmp_path / "undisturbed")


def test_an_evaluation_has_a_checkpoint_before_it(data: Path, tmp_path: Path) -> None:
    """Also where CHECKPOINT_PERIOD asks for none."""
    log, slow = tmp_path / "log", tmp_path / "slow"
    log.touch()
    slow.touch()
    server = start_server(data, slow)
    options = OPTIONS | {"SOLVER__CHECKPOINT_PERIOD": 0, "TEST__EVAL_PERIOD": 2}
    run = server.start(arguments(tmp_path / "run", **options), log)
    assert wait_until(lambda: "evaluation begins" in log.read_text())
    assert tag(tmp_path / "run") == "model_0000001.pth"
    os.killpg(run, signal.SIGKILL)
    server.wait(run)
    server.close()
