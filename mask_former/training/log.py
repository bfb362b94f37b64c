"""The numbers of a run: what every step did, averaged over a period, in the console, JSON and TensorBoard.

A row of metrics.json is the mean over the LOG.PERIOD iterations up to its own (iterations count from 0), over
all processes. Of a period that a checkpoint cuts in two, the checkpoint holds the first half, so that a
resumed run writes the rows of an undisturbed one.
"""

import datetime
import logging
import math
import resource
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm

from mask_former.training.lease import nothing_to_lose
from mask_former.training.writers import JsonWriter, Writer

logger = logging.getLogger(__name__)

SHOWN = ("total_loss", "gradient_norm", "lr", "targets", "time", "data_time", "memory_mb")  # in the console
SUMMED = frozenset({"targets"})  # over processes
LARGEST = frozenset({"time", "data_time", "memory_mb"})  # of all processes; the others are averaged
SPEED_ROWS = 50  # rows whose mean speed gives the time left
SLOW_DATA = 0.2  # share of a step's time that loading data may take
ROWS_BETWEEN_WARNINGS = 10


class Window:
    """Sums of what was measured since the last row; numbers that are not finite count for nothing."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, numbers: Mapping[str, float]) -> None:
        for name, number in numbers.items():
            is_number = math.isfinite(number)
            self.sums[name] = self.sums.get(name, 0.0) + (number if is_number else 0.0)
            self.counts[name] = self.counts.get(name, 0) + is_number

    def means(self) -> dict[str, float]:
        return {
            name: total / self.counts[name] if self.counts[name] else math.nan
            for name, total in self.sums.items()
        }

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])


class TrainingLog:
    """Collects numbers step by step in every process; the main one writes a row each period."""

    def __init__(
        self,
        period: int,
        max_iterations: int,
        writers: Sequence[Writer] = (),
        fence: Callable[[], None] = nothing_to_lose,
    ) -> None:
        """`writers`: of the main process; none elsewhere. `fence`: raises when this process must write no
        more.
        """
        self.period = period
        self.max_iterations = max_iterations
        self.writers = writers
        self.fence = fence
        self.window = Window()
        self.speeds: deque[float] = deque(maxlen=SPEED_ROWS)
        self.rows = 0
        self.may_warn = 2

    def is_due(self, iteration: int) -> bool:
        """Whether a row is written after this iteration: at multiples of the period, and at the end."""
        return (iteration + 1) % self.period == 0 or iteration + 1 == self.max_iterations

    def add(
        self, iteration: int, numbers: Mapping[str, float], latest: Mapping[str, Any] | None = None
    ) -> None:
        """One step's numbers; `latest` goes into the row as it is, from the main process, if one is due."""
        self.window.add(numbers)
        if not self.is_due(iteration):
            return
        row = combine(comm.gather(self.window.means()))
        self.window = Window()
        if not comm.is_main_process():
            return
        self.speeds.append(row["time"])
        self.rows += 1
        self._warn_of_slow_data(iteration, row)
        self.write(iteration, {**row, **(latest or {})})
        shown = "  ".join(f"{name}: {row[name]:.4g}" for name in SHOWN if name in row)
        left = float(np.mean(self.speeds)) * (self.max_iterations - iteration - 1)
        logger.info("eta: %s  iter: %d  %s", datetime.timedelta(seconds=int(left)), iteration, shown)

    def write(self, iteration: int, numbers: Mapping[str, Any]) -> None:
        """A row of its own; results of an evaluation for example."""
        self.fence()
        for writer in self.writers:
            writer.write(iteration, numbers)

    def rows_on_file(self) -> list[dict[str, Any]]:
        """The rows of the run so far, from its metrics.json; none in other processes than the main one."""
        return [row for writer in self.writers if isinstance(writer, JsonWriter) for row in writer.rows()]

    def sync(self) -> None:
        """Bring the rows to the disk; before a checkpoint, so that none before it is ever missing."""
        for writer in self.writers:
            writer.sync()

    def close(self) -> None:
        for writer in self.writers:
            writer.close()

    def _warn_of_slow_data(self, iteration: int, row: Mapping[str, float]) -> None:
        """Not for the first row, in which the workers start; then every tenth at most."""
        share = row["data_time"] / row["time"] if row["time"] else 0.0
        if share > SLOW_DATA and self.rows >= self.may_warn:
            self.may_warn = self.rows + ROWS_BETWEEN_WARNINGS
            logger.warning(
                "iteration %d: %.0f%% of the time is spent waiting for data; raise DATALOADER.NUM_WORKERS "
                "(cores permitting), or put the data on faster storage",
                iteration,
                100 * share,
            )


def combine(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The rows of all processes as one; empty where there are none (not the main process)."""
    combined = {}
    for name in rows[0] if rows else ():
        values = [row[name] for row in rows]
        if name in SUMMED:
            combined[name] = float(np.sum(values))
        elif name in LARGEST:
            combined[name] = float(np.max(values))
        else:
            combined[name] = float(np.mean(values))
    return combined


def peak_memory_mb() -> float:
    """Most memory this process has used so far: of the GPU where there is one, else of the machine."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10  # of ru_maxrss
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
