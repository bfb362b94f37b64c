"""The whole path on this machine in a few minutes: render scenes, train and evaluate two models, compare.

    python tools/demo.py [--output output/demo] [--iterations N]

What `make demo` runs. It needs no GPU and no data, and ends with a page to open in a browser. Each step is
the command that a user would type; the log of each lies beside its results.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.errors import InputError, run_cli
from tools.project import require_writable

ROOT = _path.ROOT
SCENES = {"train": 400, "val": 40, "size": 128, "seed": 0}


class Model(NamedTuple):
    """A configuration that the demo trains."""

    title: str
    name: str  # of its folder
    config: str


MODELS = (
    Model("MaskFormer", "maskformer", "configs/toy/maskformer_tiny.yaml"),
    Model("MaskFormer + PISR", "maskformer_pisr", "configs/toy/maskformer_tiny_pisr.yaml"),
)
COMPARISON, LOOKS = "comparison", "looks"
METRICS = (("PQ", "panoptic_seg", "PQ"), ("mIoU", "sem_seg", "mIoU"), ("mask AP", "segm", "AP"))


def run(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a tool of this project with its output in `log`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


def step(command: Sequence[str], log: Path, environment: dict[str, str]) -> None:
    """Run a tool to its end; InputError when it failed."""
    finish(run(command, log, environment), log)


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait for a tool; InputError with the end of its log when it failed."""
    if process.wait() != 0:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise InputError(
            f"a step of the demo failed: {last[0] if last else 'no output'}; all of its output: {log}"
        )


def train(model: Model, output: Path, environment: dict[str, str], iterations: int) -> None:
    """Train and evaluate one model, with a bar that follows the losses it writes."""
    folder = output / model.name
    folder.mkdir(parents=True, exist_ok=True)
    metrics = folder / "metrics.json"
    metrics.unlink(missing_ok=True)
    command = ["tools/train_net.py", "--config-file", model.config, "--overwrite"]
    command += ["OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", str(iterations)]
    process = run(command, output / f"{model.name}.log", environment)
    try:
        with tqdm(total=iterations, desc=model.title, unit="step") as bar:
            while process.poll() is None:
                time.sleep(0.5)
                show_progress(metrics, bar)
            show_progress(metrics, bar)
    finally:
        if process.poll() is None:  # interrupted: nothing goes on behind the user's back
            process.terminate()
    finish(process, output / f"{model.name}.log")


def show_progress(metrics: Path, bar: "tqdm[None]") -> None:
    """Bring the bar to the last line of detectron2's metrics.json."""
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]
    losses = [row for row in rows if "total_loss" in row]
    if losses:
        bar.n = losses[-1]["iteration"] + 1
        evaluating = " (evaluating)" if bar.n == bar.total else ""
        bar.set_postfix_str(f"loss={losses[-1]['total_loss']:.2f}{evaluating}")


def results(folder: Path) -> dict[str, float]:
    """The demo's metrics from what the evaluation wrote."""
    content = json.loads((folder / "inference/toy_val/metrics.json").read_text())
    return {title: content[task][key] for title, task, key in METRICS}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "output/demo", help="default: output/demo")
    parser.add_argument("--iterations", type=int, default=150, help="of each model (default: %(default)s)")
    args = parser.parse_args()
    output = require_writable(args.output).resolve()
    began = time.monotonic()
    datasets = output / "datasets"
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets)}
    os.environ.update(environment)

    print("1. render scenes in which some things can only be told by what surrounds them")
    options = [f"--{key}={value}" for key, value in SCENES.items()]
    step(["tools/render_toy_scenes.py", str(datasets / "toy"), *options], output / "render.log", environment)
    print("2. train and evaluate")
    for model in MODELS:
        train(model, output, environment, args.iterations)
    print("3. compare them, and look at what PISR encodes")
    compare(output, environment, datasets)
    report(output, time.monotonic() - began)


def compare(output: Path, environment: dict[str, str], datasets: Path) -> None:
    """The page of both models on the validation scenes, and a t-SNE of PISR's encodings on them."""
    baseline, pisr = ([model.config, str(output / model.name / "model_final.pth")] for model in MODELS)
    shutil.rmtree(output / COMPARISON, ignore_errors=True)  # of an earlier demo's models
    command = ["tools/compare.py", "--baseline", *baseline, "--pisr", *pisr, "--input", "toy_val"]
    step([*command, "--output", str(output / COMPARISON)], output / "compare.log", environment)
    command = ["tools/visualize.py", "encodings", "--config-file", pisr[0], "--weights", pisr[1]]
    command += ["--input", str(datasets / "toy/val"), "--output", str(output / LOOKS)]
    step(command, output / "encodings.log", environment)


def report(output: Path, seconds: float) -> None:
    """What came out, where it lies, and what to run next."""
    print(f"\ndone in {seconds:.0f} s\n")
    print(f"{'':24s}" + "".join(f"{title:>9s}" for title, _, _ in METRICS))
    for model in MODELS:
        print(
            f"{model.title:24s}" + "".join(f"{value:9.1f}" for value in results(output / model.name).values())
        )
    shown = output.relative_to(ROOT) if output.is_relative_to(ROOT) else output
    print(
        f"""
the page      {shown}/{COMPARISON}/index.html   (open it in a browser: both models on every image)
encodings     {shown}/{LOOKS}/encodings.png
each model    {shown}/NAME/: checkpoints, log.txt, metrics.json, inference/toy_val/ (per class), TensorBoard

next          .venv/bin/tensorboard --logdir {shown}
              .venv/bin/python tools/doctor.py                      what this machine has and lacks
              .venv/bin/python tools/prepare_ade20k.py --check      the data of the paper
              README.md                                             the way to a real training"""
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
