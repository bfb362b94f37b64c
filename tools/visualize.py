"""A look inside a model: heatmaps before and after PISR, encodings, weights, relations.

    python tools/visualize.py semantic-heatmap --config-file C --weights W --input photos --output out
    python tools/visualize.py centers          ...  --class car
    python tools/visualize.py instance-heatmap ...  [--baseline CONFIG WEIGHTS]
    python tools/visualize.py encodings        ...  (one t-SNE of all images)
    python tools/visualize.py weights          ...
    python tools/visualize.py relations        ...  --encoding car (or instance:0)

Each writes OUTPUT/NAME_COMMAND.png and the numbers behind it as .npz (docs/looking.md says what is in
them). A picture that cannot be looked at is reported and the rest go on; the exit code is then 1.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.atomic_write import replace_file
from mask_former.data.id_map import write_png
from mask_former.errors import InputError, one_line, run_cli
from mask_former.evaluation.predictions import unique_names
from pisr_maskformer.visualization.projection import Points
from tools.comparison.journal import require_no_folders, told_when_full
from tools.predict import find_images
from tools.project import project_config, require_writable
from tools.views import encodings, heatmaps
from tools.views.look import Look, Model, View

logger = logging.getLogger("tools.visualize")  # __name__ is __main__ in a script

WITH_INTERNALS = ("encodings", "weights", "relations")  # and these need a model with PISR
HELP = {
    "semantic-heatmap": "the class map of one class before and after PISR",
    "centers": "instance centres of one class over its heatmap, before and after PISR",
    "instance-heatmap": "a heatmap per instance, without and with PISR",
    "encodings": "semantic and instance encodings of all images in one plane, by t-SNE",
    "weights": "what the reweighting network attends to",
    "relations": "one encoding's row of F_sp over the image",
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config-file", required=True, metavar="FILE", help="configuration of the model")
    shared.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the model")
    shared.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="pictures and folders of them"
    )
    shared.add_argument("--output", required=True, metavar="FOLDER", help="where the results go")
    shared.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu, ... (default: MODEL.DEVICE)")
    shared.add_argument("--opts", nargs="+", default=[], metavar="KEY VALUE", help="configuration overrides")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made = {
        name: commands.add_parser(name, parents=[shared], help=text, description=text)
        for name, text in HELP.items()
    }
    for name in ("semantic-heatmap", "centers"):
        made[name].add_argument("--class", dest="wanted", metavar="NAME", help="default: that of most pixels")
    made["relations"].add_argument(
        "--encoding",
        dest="wanted",
        metavar="NAME",
        help="a class, or instance:N (default: the largest class)",
    )
    for name in ("instance-heatmap", "encodings", "weights"):
        made[name].add_argument(
            "--threshold", type=float, default=0.5, help="least score of an instance (default: %(default)s)"
        )
    made["instance-heatmap"].add_argument(
        "--baseline", nargs=2, metavar=("CONFIG", "WEIGHTS"), help="default: the prediction before PISR"
    )
    made["instance-heatmap"].add_argument(
        "--most", type=int, default=6, metavar="N", help="the N best instances (default: %(default)s)"
    )
    made["encodings"].add_argument("--seed", type=int, default=0, help="of t-SNE (default: %(default)s)")
    args = parser.parse_args(arguments)
    if not 0 <= getattr(args, "threshold", 0) <= 1:
        parser.error(f"--threshold must be from 0 to 1, not {args.threshold}")
    if getattr(args, "most", 1) < 1:
        parser.error(f"--most must be at least 1, not {args.most}")
    if not 0 <= getattr(args, "seed", 0) < 2**32:
        parser.error(f"--seed must be from 0 to {2**32 - 1}, not {args.seed}")
    return args


def open_model(config: str, weights: str, args: argparse.Namespace) -> Model:
    device = ["MODEL.DEVICE", args.device] if args.device else []
    return Model(project_config(config, [*args.opts, *device]), weights)


def view_of(args: argparse.Namespace) -> Callable[[Look, Path], View]:
    """The sub-command as a function of one image (all but `encodings`, which takes all at once)."""
    if args.command == "instance-heatmap":
        baseline = open_model(args.baseline[0], args.baseline[1], args) if args.baseline else None

        def instances(look: Look, path: Path) -> View:
            other = baseline.look(path, internals=False) if baseline else None
            return heatmaps.instance_heatmap(look, other, args.threshold, args.most)

        return instances
    simple: dict[str, Callable[[Look], View]] = {
        "semantic-heatmap": lambda look: heatmaps.semantic_heatmap(look, args.wanted),
        "centers": lambda look: heatmaps.centers(look, args.wanted),
        "weights": lambda look: encodings.weights(look, args.threshold),
        "relations": lambda look: encodings.relations(look, args.wanted),
    }
    return lambda look, path: simple[args.command](look)


def result_files(command: str, paths: Sequence[Path]) -> list[str]:
    """The names of all that will be written."""
    stems = [command] if command == "encodings" else [f"{name}_{command}" for name in unique_names(paths)]
    return [f"{stem}{suffix}" for stem in stems for suffix in (".png", ".npz")]


def write(output: Path, name: str, view: View) -> None:
    """NAME.png and NAME.npz; each appears whole or not at all."""
    write_png(output / f"{name}.png", view.picture)
    with replace_file(output / f"{name}.npz") as file:
        np.savez_compressed(file, **{key: np.asarray(value) for key, value in view.arrays.items()})


def for_each(paths: Sequence[Path], action: Callable[[Path, str], Any]) -> int:
    """Run `action(path, name)` on every picture; returns how many failed, each reported in a line."""
    failures = 0
    for path, name in zip(tqdm(paths, unit="picture"), unique_names(paths), strict=True):
        try:
            action(path, name)
        except InputError as error:
            failures += 1
            told = one_line(error)
            where = "" if str(path) in told else f"{path}: "
            tqdm.write(f"error: {where}{told}", file=sys.stderr)
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    for name in ("tools", "mask_former", "pisr_maskformer"):
        setup_logger(name=name)
    output = require_writable(args.output)
    paths = find_images(args.input, output)
    require_no_folders(output, result_files(args.command, paths))
    model = open_model(args.config_file, args.weights, args)
    with told_when_full(output):
        failures = show(args, model, paths, output)
    logger.info("%d pictures looked at: %s", len(paths) - failures, output)
    if failures:
        print(f"error: {failures} of {len(paths)} pictures failed, see above", file=sys.stderr)
    return 1 if failures else 0


def show(args: argparse.Namespace, model: Model, paths: Sequence[Path], output: Path) -> int:
    """Run the sub-command on all pictures; returns how many failed."""
    needs = args.command in WITH_INTERNALS
    if args.command == "encodings":
        found: dict[Path, Points] = {}

        def collect(path: Path, name: str) -> None:
            found[path] = encodings.image_points(model.look(path, needs), args.threshold)

        failures = for_each(paths, collect)
        if found:
            write(output, "encodings", encodings.encodings(found, model.metadata, args.seed))
        return failures
    draw = view_of(args)
    return for_each(
        paths,
        lambda path, name: write(output, f"{name}_{args.command}", draw(model.look(path, needs), path)),
    )


if __name__ == "__main__":
    sys.exit(run_cli(main))
