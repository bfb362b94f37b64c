"""How often a job must be restarted to finish: iterations, their speed, and the time limit."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ASSUMED_SECONDS = 1.0  # an iteration, where nothing is known
MARGIN = 3.0  # for an assumed speed: too few restarts end a run early, too many cost nothing
START_MINUTES = 3.0  # of each restart: start, data, the steps since the checkpoint before a hard end
SPARE = 100  # restarts for preemption and failing nodes, which Slurm counts as restarts too
ROWS = 200  # last rows of metrics.json whose median speed counts


@dataclass(frozen=True)
class Estimate:
    """Restarts that a run needs; `needed` is None where the job has no time limit or none that is known."""

    needed: int | None
    explanation: str


def estimate(
    iterations: int, limit_minutes: int | None, grace_seconds: int, seconds: float | None, source: str
) -> Estimate:
    """`iterations` are left to do, each takes `seconds` (None: unknown) as `source` says."""
    basis = (
        f"{seconds:.3g} s an iteration ({source})"
        if seconds
        else f"{ASSUMED_SECONDS:g} s an iteration (assumed, times {MARGIN:g} to be safe)"
    )
    hours = iterations * (seconds or MARGIN * ASSUMED_SECONDS) / 3600
    said = f"{iterations} iterations at {basis}: {hours:.3g} h"
    if limit_minutes is None:
        return Estimate(None, f"{said}; no time limit is known")
    usable = limit_minutes - min(START_MINUTES, limit_minutes / 4) - grace_seconds / 60
    usable = max(usable, limit_minutes / 10)
    needed = max(0, math.ceil(hours * 60 / usable) - 1)
    return Estimate(needed, f"{said}; {limit_minutes} min a start: {needed} restart(s)")


def measured_speed(folder: Path, config: str, gpus: int) -> tuple[float | None, str]:
    """Seconds an iteration, with its share of the evaluations, of the run in `folder`.

    Else of one beside it with the same config and GPUs.
    """
    own = _speed(folder)
    if own:
        return own, "measured in this run"
    for file in sorted(folder.parent.glob("*/launch.json"), key=_age):
        launch = read_json(file)
        if launch.get("config") == config and launch.get("gpus") == gpus:
            other = _speed(file.parent)
            if other:
                return other, f"measured in {file.parent.name}"
    return None, ""


def _age(path: Path) -> float:
    try:
        return -path.stat().st_mtime
    except OSError:
        return 0.0


def _speed(folder: Path) -> float | None:
    rows = read_rows(folder)
    seconds = step_seconds(rows)
    return seconds + evaluation_share(rows) if seconds else None


def step_seconds(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The median of an iteration lately; None without one."""
    times = [row["time"] for row in rows[-ROWS:] if isinstance(row.get("time"), (int, float))]
    return statistics.median(times) if times else None


def evaluation_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds of the evaluations, spread over the iterations that were done with them."""
    evaluations = [row for row in rows if isinstance(row.get("evaluation_time"), (int, float))]
    if not evaluations:
        return 0.0
    seconds = statistics.median(row["evaluation_time"] for row in evaluations)
    return seconds * len(evaluations) / (evaluations[-1]["iteration"] + 1)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.json that are whole; none when there is no such file."""
    try:
        return rows_of((folder / "metrics.json").read_bytes())
    except OSError:
        return []


def rows_of(text: bytes) -> list[dict[str, Any]]:
    """The rows of it that are whole."""
    rows = []
    for line in text.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty when it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
