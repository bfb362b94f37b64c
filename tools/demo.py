"""The whole path on this machine in a few minutes: render scenes, train, evaluate PQ and mIoU, draw pictures.

    python tools/demo.py [--output output/demo] [--iterations N]

What `make demo` runs. It needs no GPU and no data. Each step is the command that a user would type; the log
of each lies beside its results.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.data.catalog import panoptic_metadata
from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.id_map import read_id_map, read_rgb_image
from mask_former.drawing import draw_panoptic
from mask_former.errors import InputError, run_cli
from tools.project import require_writable

ROOT = _path.ROOT
SCENES = {"train": 400, "val": 40, "size": 128, "seed": 0}
PICTURES = 8


class Model(NamedTuple):
    """A configuration that the demo trains."""

    title: str
    name: str  # of its folder
    config: str


MODELS = (
    Model("MaskFormer", "maskformer", "configs/toy/maskformer_tiny.yaml"),
    Model("MaskFormer + PISR", "maskformer_pisr", "configs/toy/maskformer_tiny_pisr.yaml"),
)
METRICS = (("PQ", "panoptic_seg", "PQ"), ("mIoU", "sem_seg", "mIoU"), ("mask AP", "segm", "AP"))


def run(command: Sequence[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a tool of this project with its output in `log`."""
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *command], stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
        )


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


def contact_sheet(columns: dict[str, Path], names: Sequence[str], path: Path) -> None:
    """One row per picture, one column per folder, with titles; every file is FOLDER/NAME.*."""
    rows = []
    for name in names:
        cells = [read_rgb_image(next(folder.glob(f"{name}.*"))) for folder in columns.values()]
        rows.append(
            np.hstack([cv2.resize(cell, (256, 256), interpolation=cv2.INTER_CUBIC) for cell in cells])
        )
    heading = np.full((32, rows[0].shape[1], 3), 255, np.uint8)
    for i, title in enumerate(columns):
        cv2.putText(
            heading, title, (256 * i + 8, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA
        )
    cv2.imwrite(str(path), np.vstack([heading, *rows])[..., ::-1])


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
    finish(
        run(
            ["tools/render_toy_scenes.py", str(datasets / "toy"), *options],
            output / "render.log",
            environment,
        ),
        output / "render.log",
    )
    print("2. train and evaluate")
    for model in MODELS:
        train(model, output, environment, args.iterations)
    print("3. draw")
    draw(output, environment, datasets)
    report(output, time.monotonic() - began)


def draw(output: Path, environment: dict[str, str], datasets: Path) -> None:
    """Overlays of every model for the first validation pictures, and one sheet of all beside the truth."""
    pictures = sorted((datasets / "toy/val").iterdir())[:PICTURES]
    columns = {"image": datasets / "toy/val", "truth": output / "truth"}
    draw_truth(datasets, [picture.stem for picture in pictures], columns["truth"])
    for model in MODELS:
        folder, log = output / model.name / "pictures", output / f"{model.name}_predict.log"
        weights = output / model.name / "model_final.pth"
        command = ["tools/predict.py", "--config-file", model.config, "--weights", str(weights)]
        command += ["--input", *map(str, pictures), "--output", str(folder)]
        finish(run(command, log, environment), log)
        columns[model.title] = folder / "overlays"
    contact_sheet(columns, [picture.stem for picture in pictures], output / "pictures.png")


def draw_truth(datasets: Path, names: Sequence[str], folder: Path) -> None:
    """The labels of the validation pictures called `names`, drawn as predictions are."""
    annotations = datasets / "toy/annotations"
    records = load_coco_panoptic(
        datasets / "toy/val", annotations / "panoptic_val.json", annotations / "panoptic_val"
    )
    classes = panoptic_metadata(json.loads((annotations / "panoptic_val.json").read_text())["categories"])
    folder.mkdir(exist_ok=True)
    for record in records:
        name = Path(record["file_name"]).stem
        if name in names:
            image, ids = read_rgb_image(record["file_name"]), read_id_map(record["pan_seg_file_name"])
            shown = draw_panoptic(
                image, ids, record["segments_info"], classes["stuff_classes"], classes["stuff_colors"]
            )
            cv2.imwrite(str(folder / f"{name}.png"), shown[..., ::-1])


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
pictures      {shown}/pictures.png
each model    {shown}/NAME/: checkpoints, log.txt, metrics.json, inference/toy_val/ (per class), TensorBoard

next          .venv/bin/tensorboard --logdir {shown}
              .venv/bin/python tools/doctor.py                      what this machine has and lacks
              .venv/bin/python tools/prepare_ade20k.py --check      the data of the paper
              README.md                                             the way to a real training"""
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
