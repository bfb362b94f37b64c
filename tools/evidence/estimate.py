"""Hours and memory of a plan, before anything of it starts: a few iterations of every row are measured."""

import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate
from tqdm import tqdm

from mask_former.errors import InputError
from tools._path import ROOT
from tools.evidence.jobs import Job, Launch
from tools.evidence.results import METRICS, metric_rows
from tools.evidence.schedule import LOG, last_line

WARMUP = 3  # first iterations, which do not count


@dataclass(frozen=True)
class Cost:
    """Of one run of a row."""

    row: str
    seconds: float  # an iteration, median
    memory_mb: float
    iterations: int
    runs: int  # not done yet

    @property
    def hours(self) -> float:
        return self.seconds * self.iterations / 3600


def estimate(
    jobs: Sequence[Job], launch: Launch, variables: Mapping[str, str], iterations: int
) -> list[Cost]:
    """Train each row of the jobs for `iterations` on this machine, without evaluation, and measure.

    InputError when a row cannot be trained, with what it says.
    """
    costs = []
    for name in tqdm(dict.fromkeys(job.row for job in jobs), unit="row", desc="measuring"):
        mine = [job for job in jobs if job.row == name]
        left = sum(job.next_step() is not None for job in mine)
        folder = mine[0].folder.parent / "estimate" / name
        rows = _train(mine[0], folder, launch, variables, iterations)
        times = [entry["time"] for entry in rows[WARMUP:] if "time" in entry]
        memory = max(entry.get("memory_mb", 0.0) for entry in rows)
        costs.append(Cost(name, statistics.median(times), memory, mine[0].max_iter, left))
        shutil.rmtree(folder)
    return costs


def _train(
    job: Job, folder: Path, launch: Launch, variables: Mapping[str, str], iterations: int
) -> list[dict[str, float]]:
    folder.mkdir(parents=True, exist_ok=True)
    pairs = dict(zip(job.overrides[::2], job.overrides[1::2], strict=True))
    pairs.pop("MODEL.WEIGHTS", None)  # of a run that there is not yet; the speed is the same without
    pairs |= {
        "OUTPUT_DIR": str(folder),
        "SOLVER.MAX_ITER": str(iterations),
        "LOG.PERIOD": "1",
        "DATASETS.TEST": "()",
    }
    if not launch.gpus:
        pairs["MODEL.DEVICE"] = "cpu"
    command = [sys.executable, "tools/train_net.py", "--config-file", str(job.config), "--overwrite"]
    command += ["--num-gpus", str(launch.gpus)] if launch.gpus else []
    with (folder / LOG).open("wb") as log:
        done = subprocess.run(
            [*command, *(word for pair in pairs.items() for word in pair)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=dict(variables),
        )
    rows = [row for row in metric_rows(folder / METRICS) if "total_loss" in row]
    if done.returncode or len(rows) <= WARMUP:
        raise InputError(
            f"{job.name} cannot be measured: {last_line(folder / LOG)} (all of it: {folder / LOG})"
        )
    return rows


def table(costs: Sequence[Cost], parallel: int) -> str:
    """What each row takes, and all that is left."""
    heads = ("row", "s/iteration", "iterations", "hours a run", "memory MB", "runs left", "hours")
    lines = [
        (
            c.row,
            f"{c.seconds:.3g}",
            c.iterations,
            f"{c.hours:.2f}",
            f"{c.memory_mb:.0f}",
            c.runs,
            f"{c.hours * c.runs:.2f}",
        )
        for c in costs
    ]
    total = sum(cost.hours * cost.runs for cost in costs)
    said = f"{total:.1f} hours of training left, {total / parallel:.1f} with {parallel} run(s) at a time"
    memory = max(cost.memory_mb for cost in costs) * parallel
    return (
        f"{tabulate(lines, headers=heads, disable_numparse=True)}\n{said} if the machine has room for them; "
        f"{memory / 1024:.1f} GB of memory then. Evaluations come on top."
    )
