"""Training with one process and with several: images a second of the same batch, through tools/train_net.py.

    python -m tools.benchmarks.processes
    python -m tools.benchmarks.processes --config-file configs/toy/maskformer_tiny_pisr.yaml --processes 1 2 4

Rendered toy scenes, the whole way of the data: reading, augmenting, step, exchange of gradients. On a GPU one
process a GPU (NCCL); on the CPU one thread a process (gloo). The median step after the first five counts.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from mask_former.errors import InputError, run_cli
from tools.benchmarks.measure import Report, benchmark_parser

WARMUP = 5  # steps that do not count


def run(options: list[str], environment: dict[str, str]) -> None:
    """A tool of the project; InputError with the end of what it said when it fails."""
    done = subprocess.run(
        [sys.executable, *options],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise InputError(f"{options[0]} failed: {(done.stderr or done.stdout).strip().splitlines()[-1]}")


def seconds_per_step(
    config_file: str, data: Path, output: Path, device: str, processes: int, steps: int, batch: int
) -> float:
    """Median seconds of a step of `batch` images over all processes."""
    count = ["--num-gpus" if device == "cuda" else "--num-processes", str(processes)]
    keys = ["SOLVER.MAX_ITER", str(WARMUP + steps), "SOLVER.IMS_PER_BATCH", str(batch), "LOG.PERIOD", "1"]
    keys += ["TEST.EVAL_PERIOD", "0", "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "1"]
    keys += ["MODEL.DEVICE", device, "OUTPUT_DIR", str(output)]
    run(
        ["tools/train_net.py", "--config-file", config_file, *count, *keys],
        {"DETECTRON2_DATASETS": str(data), "OMP_NUM_THREADS": "1"},
    )
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return statistics.median(row["time"] for row in rows[WARMUP:] if "time" in row)


def main(arguments: list[str] | None = None) -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--config-file", default="configs/toy/maskformer_tiny_pisr.yaml")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument(
        "--batch", type=int, default=8, help="images of a step, in all (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=20, help="that count (default: %(default)s)")
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.batch = 5, 4
    report = Report(
        "processes", ["processes", "images/step", "seconds/step", "images/s", "speed-up"], options.device
    )
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        scenes = [
            "tools/render_toy_scenes.py",
            str(data / "toy"),
            "--train",
            "64",
            "--val",
            "4",
            "--size",
            "128",
        ]
        run(scenes, {})
        first = None
        for processes in options.processes:
            seconds = seconds_per_step(
                options.config_file,
                data,
                data / f"run{processes}",
                options.device,
                processes,
                options.steps,
                options.batch,
            )
            first = first or seconds
            cells = {"processes": processes, "images/step": options.batch, "seconds/step": seconds}
            report.add(**cells, **{"images/s": options.batch / seconds, "speed-up": first / seconds})
    report.finish(options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
