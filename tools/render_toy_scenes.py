"""Render the toy scenes, a small panoptic data set in which some classes can only be told by context.

    python tools/render_toy_scenes.py datasets/toy --train 400 --val 60 --size 128
    python tools/render_toy_scenes.py /tmp/other --train 1000 --val 200 --size 160 --seed 1 --workers 4

The first is what configs/toy reads, and the tool's default. Writes images, COCO panoptic annotations and the
list of ambiguous things (docs/toy_scenes.md). A second call with the same arguments does nothing; one with
other arguments wants another folder.
"""

import argparse
import logging
import sys
from pathlib import Path

from tqdm import tqdm

import _path  # noqa: F401
from mask_former.data.toy_scenes import GENRES, write_toy_scenes
from mask_former.errors import run_cli


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path, help="the folder to make")
    parser.add_argument("--train", type=int, default=400, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=60, help="validation images (default: %(default)s)")
    parser.add_argument("--size", type=int, default=128, help="side in pixels (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="another seed, other scenes (default: %(default)s)"
    )
    parser.add_argument(
        "--genre",
        choices=list(GENRES),
        default="marked",
        help="plain: larger discs of four colours, easier to tell; rich: more things, 20 classes instead of "
        "12 (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, help="processes; the images stay the same")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = parse_arguments(arguments)
    with tqdm(total=options.train + options.val, unit="image", leave=False, delay=0.5) as bar:
        rendered = write_toy_scenes(
            options.output,
            num_train=options.train,
            num_val=options.val,
            size=options.size,
            seed=options.seed,
            workers=options.workers,
            genre=options.genre,
            on_image=bar.update,
        )
    if not rendered:
        logging.info("%s holds these very scenes already; nothing to do", options.output)


if __name__ == "__main__":
    sys.exit(run_cli(main))
