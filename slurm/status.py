"""How runs are doing: a table, or JSON.

    python slurm/status.py runs/mine
    python slurm/status.py --all            # every run below runs/
    python slurm/status.py --all --json

Iteration, speed, losses and metrics come from the run's folder. The state is Slurm's, where it still knows
the job; else what the files tell: finished, running (its log grew lately), stopped, or not started.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import _root
from tabulate import tabulate

from mask_former.errors import InputError, run_cli
from mask_former.training.lease import read_lease
from slurm.cluster import job_state
from slurm.restarts import evaluation_share, read_json, read_rows, step_seconds
from slurm.sweep import is_finished

FRESH_SECONDS = 600.0  # a row younger than that, or than some rows' time: the run is alive
FRESH_ROWS = 10
METRICS = ("PQ", "mIoU", "AP")  # shown, of all those in --json


@dataclass(frozen=True)
class Status:
    """A run as of now; None where it is not known."""

    folder: str
    job: str | None
    state: str
    iteration: int | None  # the last one done
    max_iter: int | None
    seconds_per_iteration: float | None
    seconds_left: float | None
    restarts: int | None
    max_restarts: int | None
    losses: dict[str, float]  # of the last row
    metrics: dict[str, float]  # of the last evaluation
    evaluated: int | None  # its iteration


def status_of(folder: Path, now: float | None = None) -> Status:
    """`now`: seconds as time.time() gives them. InputError when there is no run."""
    launch, rows = read_json(folder / "launch.json"), read_rows(folder)
    starts = read_json(folder / "run.json").get("starts", [])
    if not launch and not rows and not starts:
        raise InputError(f"{folder} holds no run (no launch.json, run.json or metrics.json); check the path")
    steps = [row for row in rows if "total_loss" in row]
    evaluations = [row for row in rows if "evaluated" in row]
    max_iter = launch.get("max_iter")
    iteration = steps[-1]["iteration"] if steps else None
    seconds = step_seconds(rows)
    left = None
    if seconds and max_iter and iteration is not None:
        left = (seconds + evaluation_share(rows)) * max(0, max_iter - iteration - 1)
    lease = read_lease(folder)
    job = launch.get("job")
    return Status(
        folder=str(folder),
        job=job,
        state=_state(folder, launch, rows, time.time() if now is None else now),
        iteration=iteration,
        max_iter=max_iter,
        seconds_per_iteration=seconds,
        seconds_left=left,
        restarts=lease.restart if lease and lease.job == job else max(0, len(starts) - 1) if starts else None,
        max_restarts=launch.get("max_restarts"),
        losses=_numbers(steps[-1] if steps else {}, ("total_loss", "loss")),
        metrics=_numbers(evaluations[-1] if evaluations else {}, ("",)),
        evaluated=evaluations[-1]["iteration"] if evaluations else None,
    )


def status_or_damage(folder: Path) -> Status:
    """As `status_of`, but the state says so when the run's files are damaged: for --all."""
    try:
        return status_of(folder)
    except InputError:
        damage = "launch.json is damaged"
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        damage = f"its files are damaged ({type(error).__name__}: {error})"
    nothing: dict[str, Any] = dict.fromkeys(one.name for one in fields(Status))
    nothing |= {"folder": str(folder), "state": damage, "losses": {}, "metrics": {}}
    return Status(**nothing)


def _state(folder: Path, launch: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], now: float) -> str:
    if launch.get("max_iter") is not None and is_finished(folder, launch["max_iter"]):
        return "finished"
    job = launch.get("job")
    state = job_state(job) if job and launch.get("executor") == "slurm" else None
    if state:
        return state.lower()
    if not rows:
        return "not started"
    times = [row["time"] for row in rows[-FRESH_ROWS:] if isinstance(row.get("time"), (int, float))]
    age = now - (folder / "metrics.json").stat().st_mtime
    return "running" if age < max(FRESH_SECONDS, FRESH_ROWS * max(times, default=0.0)) else "stopped"


def _numbers(row: Mapping[str, Any], prefixes: tuple[str, ...]) -> dict[str, float]:
    left_out = ("iteration", "evaluated", "evaluation_time")
    return {
        name: value
        for name, value in row.items()
        if isinstance(value, (int, float)) and name.startswith(prefixes) and name not in left_out
    }


def table(statuses: Sequence[Status]) -> str:
    heads = ("run", "job", "state", "iteration", "s/it", "left", "restarts", "total loss", "metrics")
    return tabulate([_cells(one) for one in statuses], headers=heads, disable_numparse=True)


def _cells(one: Status) -> list[str]:
    done = "" if one.iteration is None else f"{one.iteration + 1}"
    metrics = [
        f"{name.rsplit('/', 1)[-1]} {value:.2f}"
        for name, value in one.metrics.items()
        if name.rsplit("/", 1)[-1] in METRICS
    ]
    at = "" if one.evaluated is None else f" (at {one.evaluated + 1})"
    return [
        Path(one.folder).name,
        one.job or "",
        one.state,
        f"{done} / {one.max_iter}" if one.max_iter else done,
        "" if one.seconds_per_iteration is None else f"{one.seconds_per_iteration:.3g}",
        "" if one.seconds_left is None else _duration(one.seconds_left),
        "" if one.restarts is None else f"{one.restarts} / {one.max_restarts}",
        f"{one.losses['total_loss']:.4g}" if "total_loss" in one.losses else "",
        ", ".join(metrics) + at if metrics else "",
    ]


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days} d " if days else "") + f"{rest // 60}:{rest % 60:02d} h"


def folders_below(root: Path) -> list[Path]:
    """Run folders under `root`, those of sweeps too."""
    return sorted(path.parent for pattern in ("*", "*/*") for path in root.glob(f"{pattern}/launch.json"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", nargs="*", help="run folders")
    parser.add_argument("--all", action="store_true", help="every run below --root")
    parser.add_argument("--root", default=str(_root.ROOT / "runs"), help="(default: runs/ beside the code)")
    parser.add_argument("--json", action="store_true", help="all that is known, as a JSON list")
    args = parser.parse_args(arguments)
    if not args.run_dir and not args.all:
        raise InputError("name a run's folder, or give --all")
    statuses = [status_of(Path(folder)) for folder in args.run_dir]
    if args.all:
        statuses += [status_or_damage(folder) for folder in folders_below(Path(args.root))]
    if args.json:
        print(json.dumps([asdict(one) for one in statuses], indent=1, ensure_ascii=False))
    else:
        print(table(statuses) if statuses else f"no runs below {args.root}")
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
