"""Segment pictures: overlays to look at, and the segments in COCO's panoptic format.

    python tools/predict.py --config-file configs/ade20k/maskformer_r50.yaml --weights model_final.pth \\
        --input photos street.jpg --output output/photos

Writes OUTPUT/overlays/NAME.jpg, OUTPUT/panoptic/NAME.png and OUTPUT/panoptic.json. Folders are searched with
all that is in them. A picture that cannot be read is reported and the rest go on; the exit code is then 1. A
model without panoptic results (MODEL.MASK_FORMER.TEST.PANOPTIC_ON False) gives one segment per class.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import setup_logger
from PIL import Image
from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.data.id_map import read_rgb_image
from mask_former.drawing import draw_panoptic
from mask_former.errors import InputError, one_line, run_cli
from mask_former.evaluation.predictions import JSON_FILE, PNG_FOLDER, PanopticWriter, unique_names
from mask_former.prediction import Predictor, class_metadata, panoptic_map
from tools.project import project_config, require_writable

logger = logging.getLogger("tools.predict")  # __name__ is __main__ in a script

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
OVERLAY_FOLDER = "overlays"
JPEG_QUALITY = 92

Predict = Callable[[np.ndarray], dict[str, Any]]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="configuration of the model")
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint of the model")
    parser.add_argument(
        "--input", required=True, nargs="+", metavar="PATH", help="pictures and folders of them"
    )
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu, ... (default: MODEL.DEVICE)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="configuration overrides")
    return parser.parse_args(arguments)


def find_images(inputs: Sequence[str | Path], output: Path) -> list[Path]:
    """The files named, and every picture below the folders named, in order and once each.

    What an earlier run left below `output` is not taken for input. InputError when a path does not exist, or
    nothing is found.
    """
    found: dict[Path, Path] = {}
    for path in map(Path, inputs):
        if not path.exists():
            raise InputError(
                f"--input {path}: no such file or folder (KEY VALUE pairs go after another option)"
            )
        for file in _pictures_below(path, output.resolve()) if path.is_dir() else [path]:
            found.setdefault(file.resolve(), file)
    if not found:
        raise InputError(f"no pictures in {', '.join(map(str, inputs))}; looked for {', '.join(SUFFIXES)}")
    return list(found.values())


def _pictures_below(folder: Path, output: Path) -> list[Path]:
    pictures = []
    for parent, _, names in os.walk(folder):
        if not Path(parent).resolve().is_relative_to(output):
            pictures += [Path(parent, name) for name in names if name.lower().endswith(SUFFIXES)]
    return sorted(pictures)


def prepare_output(folder: str | Path) -> Path:
    """Make the output's folders; InputError when something of another kind is in the place of a result."""
    output = require_writable(folder)
    for name in (OVERLAY_FOLDER, PNG_FOLDER):
        require_writable(output / name)
    if (output / JSON_FILE).is_dir():  # it is written last, when all the work is done
        raise InputError(f"cannot write {output / JSON_FILE}: it is a folder; choose another --output")
    return output


def predict_image(
    path: Path, name: str, predict: Predict, metadata: Metadata, writer: PanopticWriter
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write the overlay and the PNG of one picture; returns its entries in "annotations" and "images"."""
    rgb = read_rgb_image(path)
    try:
        ids, segments = panoptic_map(predict(rgb))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    overlay = draw_panoptic(rgb, ids, segments, metadata.stuff_classes, metadata.stuff_colors)
    Image.fromarray(overlay).save(writer.folder / OVERLAY_FOLDER / f"{name}.jpg", quality=JPEG_QUALITY)
    height, width = ids.shape
    image = {"id": name, "file_name": str(path), "height": height, "width": width}
    return writer.write(name, name, ids, segments), image


def predict_all(paths: Sequence[Path], predict: Predict, metadata: Metadata, output: Path) -> int:
    """Predict every picture and write the JSON; returns how many failed, each reported in a line."""
    writer = PanopticWriter(output, metadata)
    done: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for path, name in zip(tqdm(paths, unit="picture"), unique_names(paths), strict=True):
        try:
            done.append(predict_image(path, name, predict, metadata, writer))
        except InputError as error:
            tqdm.write(f"error: {one_line(error)}", file=sys.stderr)
    json_file = writer.finish([annotation for annotation, _ in done], [image for _, image in done])
    logger.info("%d pictures: %s and %s", len(done), output / OVERLAY_FOLDER, json_file)
    return len(paths) - len(done)


def main(arguments: Sequence[str] | None = None, build: Callable[[CfgNode, str], Predict] = Predictor) -> int:
    """The tool; `build` makes the predicting function from configuration and weights."""
    args = parse_arguments(arguments)
    for name in ("tools", "mask_former"):
        setup_logger(name=name)
    device = ["MODEL.DEVICE", args.device] if args.device else []
    cfg = project_config(args.config_file, [*args.opts, *device])
    output = prepare_output(args.output)
    paths = find_images(args.input, output)
    metadata = class_metadata(cfg)
    failures = predict_all(paths, build(cfg, args.weights), metadata, output)
    if failures:
        print(f"error: {failures} of {len(paths)} pictures failed, see above", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
