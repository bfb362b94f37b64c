"""Make panoptic labels in COCO's format from images with a PNG of classes and a PNG of instance numbers each.

    python tools/make_panoptic.py --images my/images --classes my/classes --instances my/instances \\
        --names my/names.json --json my/panoptic_train.json

NAME.jpg (or .png, ...) has its labels in NAME.png of both folders. A pixel of the class PNG is the id of a
class in --names, a JSON list of {"id": 1, "name": "road", "isthing": 0}, or stands for void. A pixel of the
instance PNG (8 or 16 bit) is the number of its instance, 0 for none; without things there is no need of it.
Writes the JSON, and the panoptic PNGs to a folder of its name; docs/own_data.md goes on from there. A JSON
that is there is deleted first and written last, when all PNGs are those that it tells of.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.atomic_write import remove_leftovers
from mask_former.data.own_labels import MadeLabel, OwnLabels, make_label, read_names, write_panoptic_json
from mask_former.data.parallel import parallel_map
from mask_former.errors import InputError, run_cli
from tools.checks.machine import usable_cores
from tools.project import require_writable

logger = logging.getLogger(__name__)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--classes", type=Path, required=True, metavar="FOLDER", help="PNGs of classes")
    parser.add_argument("--instances", type=Path, metavar="FOLDER", help="PNGs of instance numbers")
    parser.add_argument("--names", type=Path, required=True, metavar="FILE", help="JSON list of the classes")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="the JSON to write")
    parser.add_argument("--void", type=int, nargs="+", default=[255], help="of no class (default: 255)")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes, as many as cores")
    options = parser.parse_args(arguments)
    if options.workers < 1:
        raise InputError(f"--workers {options.workers}: use at least 1")
    if options.json.suffix != ".json":
        raise InputError(f"--json {options.json}: must end in .json; the PNGs go to a folder of that name")
    return options


def own_labels(options: argparse.Namespace) -> OwnLabels:
    """What the command line names, once it is known to be of one piece."""
    categories = read_names(options.names)
    things = [category["name"] for category in categories if category["isthing"]]
    if things and options.instances is None:
        raise InputError(
            f"{options.names}: {things[0]} is a thing, which needs instance numbers; add --instances"
        )
    if listed := sorted({category["id"] for category in categories} & set(options.void)):
        raise InputError(f"{options.names}: the id {listed[0]} stands for void; set --void to another value")
    if options.json.resolve() == options.names.resolve():
        raise InputError(f"{options.json}: --json would replace the file of --names; choose another name")
    pngs = options.json.with_suffix("")
    for name in ("images", "classes", "instances"):
        folder = getattr(options, name)
        if folder and pngs.resolve() == folder.resolve():
            raise InputError(f"{options.json}: its PNGs would go to the folder of --{name}; rename it")
    return OwnLabels(
        images=options.images,
        classes=options.classes,
        instances=options.instances,
        pngs=pngs,
        categories=categories,
        void=tuple(options.void),
    )


def make_all(labels: OwnLabels, names: Sequence[str], workers: int) -> list[MadeLabel]:
    made = parallel_map(partial(make_label, labels), names, min(workers, len(names)))
    return list(tqdm(made, total=len(names), unit="img"))


def main(arguments: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = parse_arguments(arguments)
    labels = own_labels(options)
    names = labels.image_files()
    remove_leftovers(require_writable(labels.pngs))
    options.json.unlink(missing_ok=True)  # until all is made: new PNGs must not meet an old JSON
    made = make_all(labels, names, options.workers)
    write_panoptic_json(options.json, made, labels.categories)
    segments = sum(len(label.annotation["segments_info"]) for label in made)
    logger.info("%s: %d images, %d segments", options.json, len(made), segments)
    if lost := [label for label in made if label.without_instance]:
        logger.warning(
            "%d images have pixels of things without an instance number, which became void; the first is %s",
            len(lost),
            lost[0].image["file_name"],
        )


if __name__ == "__main__":
    sys.exit(run_cli(main))
