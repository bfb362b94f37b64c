"""How benchmarks measure and report: median times, peak memory of tensors, the machine, a table and JSON.

Times are wall-clock medians on the device, or with `cpu_time` the processor time of this process, which
other processes on a busy machine disturb less. Peak memory is what tensors take at most beyond what they took
before the call, counted from the allocator's own events: exact, and the same on every run.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mask_former.machine import usable_cores

MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """One way of doing something."""

    seconds: float  # median
    peak_bytes: int  # of tensors, beyond what there was before

    def as_json(self) -> dict[str, float]:
        return {"seconds": self.seconds, "peak_mib": self.peak_bytes / MIB}


def measure(
    function: Callable[[], Any],
    *,
    device: str | torch.device = "cpu",
    repeats: int = 5,
    warmup: int = 1,
    cpu_time: bool = False,
) -> Measured:
    """Median seconds and peak memory of `function()`, whose result is dropped."""
    for _ in range(warmup):
        function()
    times = [seconds_of(function, device, cpu_time) for _ in range(repeats)]
    return Measured(statistics.median(times), peak_memory(function, device))


def compare(
    functions: Mapping[str, Callable[[], Any]],
    *,
    device: str | torch.device = "cpu",
    repeats: int = 5,
    warmup: int = 1,
    cpu_time: bool = False,
) -> dict[str, Measured]:
    """`measure` of several ways, taking turns, so that what disturbs the machine disturbs all of them."""
    for _ in range(warmup):
        for function in functions.values():
            function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            times[name].append(seconds_of(function, device, cpu_time))
    return {
        name: Measured(statistics.median(times[name]), peak_memory(function, device))
        for name, function in functions.items()
    }


SIDE_BY_SIDE = ("plain s", "ours s", "faster", "plain MiB", "ours MiB", "memory")


def side_by_side(
    plain: Callable[[], Any], ours: Callable[[], Any], options: argparse.Namespace
) -> dict[str, float]:
    """Cells of the columns SIDE_BY_SIDE, measured as the flags of `benchmark_parser` say."""
    found = compare(
        {"plain": plain, "ours": ours},
        device=options.device,
        repeats=options.repeats,
        cpu_time=options.cpu_time,
    )
    slow, fast = found["plain"], found["ours"]
    times = (slow.seconds, fast.seconds, slow.seconds / fast.seconds)
    memory = (slow.peak_bytes / MIB, fast.peak_bytes / MIB, fast.peak_bytes / slow.peak_bytes)
    return dict(zip(SIDE_BY_SIDE, times + memory, strict=True))


def seconds_of(
    function: Callable[[], Any], device: str | torch.device = "cpu", cpu_time: bool = False
) -> float:
    """Seconds of one call: CUDA events on a GPU, else this process's clock."""
    if torch.device(device).type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    clock = time.process_time if cpu_time else time.perf_counter
    began = clock()
    function()
    return clock() - began


def peak_memory(function: Callable[[], Any], device: str | torch.device = "cpu") -> int:
    """Bytes that tensors take at most during one call, beyond what they took before it."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    activities = [torch.profiler.ProfilerActivity.CPU]
    profile = torch.profiler.profile(activities=activities, profile_memory=True)
    with warnings.catch_warnings(), _without_stderr():  # of itself; its library writes to stderr, too
        warnings.simplefilter("ignore", UserWarning)
        with profile as profiler:
            function()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    taken = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    return peak


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Nothing that this process writes to standard error, from C either, is shown."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def machine(device: str | torch.device = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    found = {
        "date": date.today().isoformat(),
        "processor": _processor(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if torch.device(device).type == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass
class Report:
    """The rows of one benchmark, printed as a Markdown table and written as JSON."""

    name: str  # of the benchmark, and of its file
    columns: Sequence[str]
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, **cells: Any) -> None:
        """One row: a value for each of the columns, in any order."""
        if set(cells) != set(self.columns):
            raise ValueError(f"a row of {self.name} needs {list(self.columns)}, not {list(cells)}")
        self.rows.append(cells)

    def table(self) -> str:
        lines = [" | ".join(self.columns), " | ".join("---" for _ in self.columns)]
        lines += [" | ".join(_cell(row[column]) for column in self.columns) for row in self.rows]
        return "\n".join(f"| {line} |" for line in lines)

    def finish(self, output: Path | None) -> None:
        """Print the table under the machine's description; write `output`/NAME.json if a folder is given."""
        facts = machine(self.device)
        print(f"\n{self.name}: " + ", ".join(f"{key} {value}" for key, value in facts.items()))
        print(self.table(), flush=True)
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            content = {"benchmark": self.name, "machine": facts, "arguments": sys.argv[1:], "rows": self.rows}
            (output / f"{self.name}.json").write_text(json.dumps(content, indent=1) + "\n")


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """The flags that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=gpu, help="cpu or cuda (default: %(default)s)")
    parser.add_argument(
        "--repeats", type=int, default=5, help="timed calls of each way (default: %(default)s)"
    )
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time of this process, all threads, on a busy CPU"
    )
    parser.add_argument("--output", type=Path, help="folder for NAME.json")
    parser.add_argument("--quick", action="store_true", help="small sizes and few repeats: seconds")
    return parser
