"""A profile of a few training steps: a trace to look at, and tables of what takes time and memory.

OUTPUT_DIR/profile/trace.json.gz    for https://ui.perfetto.dev or chrome://tracing
OUTPUT_DIR/profile/summary.txt      operators by their own time, on the device and on the host, and memory
"""

import logging
from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch.profiler import ProfilerActivity, profile

from mask_former.atomic_write import replace_file

logger = logging.getLogger(__name__)

WARM_UP = 5  # steps before those that count: workers start, kernels are chosen and compiled
STEPS = 3
ROWS = 25  # of each table


class ProfileHook(HookBase):
    """Profiles STEPS steps after the first WARM_UP of a start, with the loading of their data, then lets the
    run go on.

    What it cannot write is told, and no reason to stop a run.
    """

    def __init__(self, folder: str | Path, warm_up: int = WARM_UP, steps: int = STEPS) -> None:
        """`folder`: of the run."""
        self.folder = Path(folder) / "profile"
        self.warm_up = warm_up
        self.steps = steps
        self.profiler: profile | None = None

    def before_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter == self.warm_up:
            on_gpu = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
            activities = [ProfilerActivity.CPU, *on_gpu]
            self.profiler = profile(activities=activities, profile_memory=True)
            self.profiler.start()

    def after_step(self) -> None:
        if self.trainer.iter - self.trainer.start_iter == self.warm_up + self.steps - 1:
            self._finish(self.steps)

    def after_train(self) -> None:
        done = self.trainer.iter - self.trainer.start_iter
        if self.profiler is not None:
            self._finish(done - self.warm_up)
        elif done <= self.warm_up:
            logger.warning(
                "nothing is profiled: that begins after %d iterations, and the run had %d", self.warm_up, done
            )

    def _finish(self, steps: int) -> None:
        profiler, self.profiler = self.profiler, None
        assert profiler is not None
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # the last step's kernels belong to it
        profiler.stop()
        trace = self.folder / "trace.json.gz"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(trace))
            with replace_file(self.folder / "summary.txt") as file:
                file.write(summary(profiler, steps, self.warm_up).encode())
        except (OSError, RuntimeError) as error:  # the trace is written in C++, which raises the latter
            reason = getattr(error, "strerror", None) or error
            logger.warning("the profile cannot be written to %s: %s", self.folder, reason)
        else:
            logger.info("profile of %d iterations: %s and summary.txt beside it", steps, trace)


def summary(profiler: profile, steps: int, warm_up: int = WARM_UP) -> str:
    """Tables of a finished profile, the longest operators first."""
    averages = profiler.key_averages()
    orders = {
        "time on the host, operators it calls apart": "self_cpu_time_total",
        "memory that it took, of the host": "self_cpu_memory_usage",
    }
    if torch.cuda.is_available():
        orders = {
            "time on the device, operators it calls apart": "self_device_time_total",
            "memory that it took, of the device": "self_device_memory_usage",
        } | orders
    text = f"{steps} iterations, without {warm_up} before them\n"
    for title, order in orders.items():
        table = averages.table(sort_by=order, row_limit=ROWS, max_name_column_width=60)
        text += f"\nBy {title}:\n{table}\n"
    return text
