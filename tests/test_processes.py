"""Several processes equal one: losses, gradients, whole runs. Two real processes on the CPU, with gloo."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from toy_run import arguments, render

from mask_former.errors import InputError
from mask_former.optimizer import Clipping
from mask_former.training.process_group import leaving_the_group
from mask_former.training.step import TrainingStep, distribute
from mask_former.training.stopping import RunStopped
from tests.heard import heard
from tests.resumable import ROOT, RunServer
from tests.tiny import sample, tiny_model
from tests.tiny_pisr import tiny_pisr
from tools import train_net

MODELS = {"maskformer": tiny_model, "pisr": tiny_pisr}
# Targets of the images of a batch; the second half is the second process's.
BATCHES = {"equal": (2, 3, 1, 4), "one process without any": (3, 2, 0, 0), "none at all": (0, 0, 0, 0)}


def in_two_processes(work: Callable[..., None], folder: Path, *given: Any) -> None:
    """Call `work` with the folder and what is given. They meet by a file: a port may be taken meanwhile."""
    launch(work, 2, dist_url=f"file://{folder}/meet", args=(str(folder), *given))


def one_step(model: str, batch: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Losses and gradients of one step on this process's micro-batches."""
    network = MODELS[model]()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
    result = TrainingStep(distribute(network), optimizer, Clipping())(0, batch)
    gradients = {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}
    return {"losses": result.losses, "gradients": gradients}


def samples(segments: tuple[int, ...]) -> list[dict[str, Any]]:
    return [sample(seed, segments=number) for seed, number in enumerate(segments)]


@leaving_the_group()
def work(folder: str, micro_batches: int) -> None:
    """In each of two processes: every case on this one's half of the batch."""
    torch.set_num_threads(1)
    for model in MODELS:
        for name, segments in BATCHES.items():
            half = samples(segments)[2 * comm.get_rank() :][:2]
            batch = [half] if micro_batches == 1 else [[one] for one in half]
            torch.save(one_step(model, batch), Path(folder) / f"{model} {name} {comm.get_rank()}.pth")


@pytest.fixture(scope="module", params=[1, 2], ids=["one micro-batch", "two micro-batches"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    in_two_processes(work, folder, request.param)
    return folder


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch", BATCHES)
def test_two_processes_have_the_losses_and_gradients_of_one(both: Path, model: str, batch: str) -> None:
    first, second = (torch.load(both / f"{model} {batch} {rank}.pth") for rank in (0, 1))
    alone = one_step(model, [samples(BATCHES[batch])])
    assert first["losses"].keys() == second["losses"].keys() == alone["losses"].keys()
    for name, loss in alone["losses"].items():
        mean = (first["losses"][name] + second["losses"][name]) / 2
        assert mean == pytest.approx(loss, rel=1e-5, abs=1e-7), name
    assert first["gradients"].keys() == second["gradients"].keys() == alone["gradients"].keys()
    largest = max(gradient.abs().max().item() for gradient in alone["gradients"].values())
    for name, gradient in alone["gradients"].items():
        assert torch.equal(first["gradients"][name], second["gradients"][name]), name
        torch.testing.assert_close(
            first["gradients"][name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name
        )


@leaving_the_group()
def diverge(folder: str) -> None:
    """In each of two processes: steps on the second one's image are not finite."""
    torch.set_num_threads(1)
    network = tiny_model()
    step = TrainingStep(distribute(network), torch.optim.SGD(network.parameters(), lr=0.1), Clipping())
    before = [parameter.clone() for parameter in network.parameters()]
    with heard("mask_former.training.divergence") as said:
        if comm.get_rank() == 1:
            network.pixel_mean.fill_(math.nan)
        skipped = step(7, [samples((2, 3))[comm.get_rank() :][:1]]).skipped
    same = all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    torch.save({"said": said, "skipped": skipped, "same": same}, Path(folder) / f"{comm.get_rank()}.pth")


def test_a_step_that_is_not_finite_in_one_process_is_left_out_in_both(tmp_path: Path) -> None:
    in_two_processes(diverge, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in (0, 1))
    for one in (first, second):  # both know what it was, and the image
        assert one["skipped"] and one["same"] and len(one["said"]) == 1
        assert "iteration 7 is left out" in one["said"][0] and "on images 1 (1 in a row" in one["said"][0]


def group_threads() -> int:
    """Number of this process's threads that work off the exchanges of gloo's groups."""
    number = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            number += "gloo" in (task / "comm").read_text()
    return number


@leaving_the_group()
def step_and_end(ending: str, seen: list[int]) -> None:
    """A step and an exchange of objects, by a model that only the collector of garbage frees."""
    network = distribute(tiny_model())
    network.cycle = [network]
    step = TrainingStep(network, torch.optim.SGD(network.parameters(), lr=0.1), Clipping())
    step(0, [samples((2, 3))[comm.get_rank() :][:1]])
    comm.gather("done")
    seen.append(group_threads())
    if ending != "over":
        raise RunStopped(0, agreed=ending == "stopped together")


@leaving_the_group()
def end(folder: str, ending: str) -> None:
    """In each of two processes: threads of groups in the work, and after its end."""
    torch.set_num_threads(1)
    rank, seen = comm.get_rank(), list[int]()
    with suppress(RunStopped):
        step_and_end(ending, seen)
    deadline = time.monotonic() + 10  # a thread that has been joined is seen for a moment more
    while not dist.is_initialized() and group_threads() and time.monotonic() < deadline:
        time.sleep(0.05)
    torch.save([*seen, group_threads()], Path(folder) / f"{rank}.pth")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
@pytest.mark.parametrize("ending", ["over", "stopped together", "stopped alone"])
def test_a_group_is_left_when_all_end(tmp_path: Path, ending: str) -> None:
    """Its threads could abort Python's end. Who stops alone leaves no peer behind in an exchange."""
    in_two_processes(end, tmp_path, ending)
    for rank in (0, 1):
        within, after = torch.load(tmp_path / f"{rank}.pth")
        if not within:
            pytest.skip("this torch gives the threads of a group no name")
        assert after == (within if ending == "stopped alone" else 0)


RUN = {
    "SOLVER__IMS_PER_BATCH": 4,
    "LOG__PERIOD": 1,
    "TEST__EVAL_PERIOD": 0,
    "SOLVER__CHECKPOINT_PERIOD": 3,
    "SOLVER__MAX_ITER": 6,
}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]


def test_a_run_of_two_processes_is_the_run_of_one_and_resumes(tmp_path: Path) -> None:
    server = RunServer(render(tmp_path / "datasets"))

    def run(name: str, *flags: str, **options: Any) -> str:
        log = tmp_path / f"{name}.log"
        code = server.wait(server.start(arguments(tmp_path / name, *flags, **{**RUN, **options}), log))
        assert code == 0, log.read_text()[-3000:]
        return log.read_text()

    run("one")
    run("two", "--num-processes", "2", SOLVER__MAX_ITER=3, DATASETS__TEST="()")
    # the same run goes on to iteration 6: schedule and images are those of the configuration
    run("two", "--num-processes", "2", "--resume")
    server.close()
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [row["iteration"] for row in two] == [row["iteration"] for row in one]
    steps = [(a, b) for a, b in zip(one, two, strict=True) if "total_loss" in a]
    assert len(steps) == 6
    for first, second in steps:
        assert first["image_ids"] == second["image_ids"] and first["targets"] == second["targets"]
    for name, loss in steps[0][0].items():
        if name.startswith("loss") or name == "gradient_norm":
            assert steps[0][1][name] == pytest.approx(loss, rel=1e-4), name
    saved = torch.load(tmp_path / "two/model_final.pth", weights_only=True)
    assert len(saved["processes"]) == 2 and saved["data"]["samples_seen"] == 24
    assert "panoptic_seg/PQ" in two[-1]  # evaluated by both


def test_runs_on_one_machine_meet_at_ports_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several machines need one that all know."""
    asked: list[tuple[int, str]] = []
    monkeypatch.setattr(
        train_net,
        "launch",
        lambda main, processes, *, num_machines, dist_url, **_: asked.append((num_machines, dist_url)),
    )
    train_net.cli(["--num-processes", "2"])
    train_net.cli(["--num-machines", "2", "--dist-url", "tcp://a:1"])
    assert asked == [(1, "auto"), (2, "tcp://a:1")]
    with pytest.raises(InputError, match=r"--num-machines 2 needs --dist-url tcp://HOST:PORT"):
        train_net.cli(["--num-machines", "2"])


def test_bad_input_in_one_process_ends_both_with_one_line(tmp_path: Path) -> None:
    data = render(tmp_path / "datasets")
    for path in (data / "toy/train").iterdir():
        path.write_bytes(b"no image")
    # the script itself: its processes are spawned, and run its imports again
    command = arguments(tmp_path / "run", "--num-processes", "2", **RUN)
    done = subprocess.run(
        [sys.executable, ROOT / "tools/train_net.py", *command],
        env={**os.environ, "DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1 and "cannot be decoded" in lines[0], done.stderr
    assert os.listdir(tmp_path / "run")  # what there was stays
