"""A baseline and a model with PISR beside each other: panels, numbers, and a page to look through.

    python tools/compare.py --baseline configs/ade20k/maskformer_r50.yaml output/base/model_final.pth \\
        --pisr configs/ade20k/maskformer_r50_pisr.yaml output/pisr/model_final.pth \\
        --input ade20k_panoptic_val --output output/comparison
    python tools/compare.py --baseline output/base/inference/coco_panoptic_val --pisr output/pisr_photos \\
        --input photos --output output/comparison

A side is CONFIG WEIGHTS, or a FOLDER of saved predictions (tools/predict.py, TEST.KEEP_PREDICTIONS). The
input is a data set, with ground truth, or a folder of images, without. OUTPUT gets index.html (open it in a
browser), images/ with a panel per image, sheets of the largest gains and losses, metrics.md and metrics.json.
A comparison that was stopped goes on when it is started again. An image that cannot be compared is reported
and the rest go on; the exit code is then 1.
"""

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.utils.logger import setup_logger
from tqdm import tqdm

import _path  # noqa: F401  (puts the repository's root on sys.path)
from mask_former.data.catalog import first_difference, thing_ids
from mask_former.data.id_map import read_rgb_image
from mask_former.errors import InputError, one_line, run_cli
from mask_former.evaluation.metrics_file import plain
from pisr_maskformer.visualization.differences import PanopticMap, difference_boxes, disagreement
from tools.comparison.inputs import Inputs, Item, Truth, open_inputs
from tools.comparison.journal import FILES, Journal, require_no_folders, told_when_full
from tools.comparison.pictures import (
    FOLDER,
    Painter,
    draw_image,
    heatmap_pictures,
    telling_class,
    write_pictures,
)
from tools.comparison.report import (
    PAGE_FILE,
    REPORT_FILES,
    markdown,
    results,
    summary_table,
    write_report,
)
from tools.comparison.scores import SIDES, Classes, image_instances, score_image
from tools.comparison.sources import ModelSource, Prediction, SavedSource, open_source
from tools.project import project_config, require_writable

logger = logging.getLogger("tools.compare")  # __name__ is __main__ in a script

TITLES = {"input": "input", "truth": "ground truth", "baseline": "baseline", "pisr": "PISR"}
Sources = Mapping[str, ModelSource | SavedSource]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for side, title in (("baseline", "the model compared with"), ("pisr", "the model with PISR")):
        parser.add_argument(
            f"--{side}", required=True, nargs="+", metavar="PATH", help=f"{title}: CONFIG WEIGHTS, or FOLDER"
        )
    parser.add_argument("--input", required=True, metavar="FOLDER|DATASET", help="images to compare on")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--config-file", metavar="FILE", help="registers DATASET where both sides are saved")
    parser.add_argument("--first", type=int, metavar="N", help="compare on the first N images only")
    parser.add_argument("--device", metavar="NAME", help="cuda, cuda:1, cpu, ... (default: MODEL.DEVICE)")
    parser.add_argument(
        "--opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of all configurations"
    )
    args = parser.parse_args(arguments)
    if args.first is not None and args.first < 1:
        parser.error(f"--first must be at least 1, not {args.first}")
    return args


def prepare_output(folder: str | Path) -> Path:
    """Make the output's folders; InputError when something of another kind is in the place of a result."""
    output = require_writable(folder)
    require_writable(output / FOLDER)
    require_no_folders(output, (*FILES, *REPORT_FILES))
    return output


def common_classes(sources: Sources, inputs: Inputs) -> Metadata:
    """Names, colours and things of the classes; InputError when both sides and the data do not share them."""
    metadata = {TITLES[side]: sources[side].metadata for side in SIDES}
    if inputs.ground_truth is not None:
        metadata = {inputs.name: inputs.ground_truth.metadata, **metadata}
    (first, chosen), *others = metadata.items()
    for name, other in others:
        difference = first_difference(chosen, other)
        if difference:
            raise InputError(
                f"{first} and {name} do not have the same classes: {difference}; compare models of one data "
                "set, on it"
            )
    if not chosen.get("stuff_colors"):
        return sources["baseline"].metadata
    return chosen


class Comparison:
    """What is the same for all images."""

    def __init__(self, sources: Sources, inputs: Inputs, output: Path) -> None:
        self.sources, self.inputs, self.output = sources, inputs, output
        self.metadata = common_classes(sources, inputs)
        self.classes = Classes(self.metadata.stuff_classes, thing_ids(self.metadata))
        truth = inputs.ground_truth
        self.modes = {
            "panoptic": truth is not None and truth.has_panoptic,
            "from_scores": all(sources[side].has_semantic for side in SIDES),
            "instances": truth is not None
            and truth.has_instances
            and all(sources[side].has_instances for side in SIDES),
        }

    def run(self, item: Item) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Predict, score and draw one image: its record, and its instances where AP is asked for."""
        rgb = read_rgb_image(item.file)
        truth = self.inputs.truth(item, rgb)
        predictions = {side: self.sources[side].predict(item, rgb) for side in SIDES}
        maps = {side: predictions[side].panoptic for side in SIDES}
        differs = disagreement(maps["baseline"], maps["pisr"], self.classes.things)
        height, width = differs.shape
        boxes = [
            [left / width, top / height, right / width, bottom / height]
            for left, top, right, bottom in difference_boxes(differs)
        ]
        record = {
            "index": item.index,
            "name": item.name,
            "width": width,
            "height": height,
            "changed": float((differs > 0).mean()),
            "boxes": boxes,
            "classes": _classes_in([*maps.values(), *([truth.panoptic] if truth else [])]),
        }
        if truth is not None:
            record |= score_image(
                truth, predictions, self.classes, self.modes["from_scores"], self.modes["panoptic"]
            )
        record |= self._draw(item, rgb, truth, predictions, differs > 0, boxes)
        instances = None
        if self.modes["instances"] and truth is not None:
            instances = image_instances(item.index, truth.panoptic, predictions, self.classes)
        return plain(record), instances

    def _draw(
        self,
        item: Item,
        rgb: np.ndarray,
        truth: Truth | None,
        predictions: Mapping[str, Prediction],
        differs: np.ndarray,
        boxes: Sequence[Sequence[float]],
    ) -> dict[str, Any]:
        """Write the pictures; "pictures" and "heat", the class of the heatmaps, for the record."""
        maps = {"truth": truth.panoptic} if truth else {}
        maps |= {side: predictions[side].panoptic for side in SIDES}
        drawn = draw_image(Painter(rgb, maps, self.metadata), TITLES, boxes)
        heat = telling_class(maps["baseline"], maps["pisr"], differs)
        observation = predictions["pisr"].observation
        if observation is None or heat is None:
            heat = None
        else:
            drawn |= heatmap_pictures(rgb, observation, heat)
        return {"heat": heat, "pictures": write_pictures(self.output, item.stem, drawn)}


def _classes_in(maps: Sequence[PanopticMap]) -> list[int]:
    return sorted({int(segment["category_id"]) for panoptic in maps for segment in panoptic.segments})


def compare_all(comparison: Comparison, journal: Journal) -> int:
    """Every image that is not done yet; returns how many failed, each reported in a line."""
    done = journal.done()
    failures = 0
    items = comparison.inputs.items
    if done:
        logger.info("%d of %d images are done already", len(done), len(items))
    with tqdm(total=len(items), initial=len(done), unit="image") as bar:
        for item in items:
            if item.index in done:
                continue
            try:
                journal.add(*comparison.run(item))
            except InputError as error:
                failures += 1
                told = one_line(error)
                where = "" if str(item.file) in told else f"{item.file}: "
                bar.write(f"error: {where}{told}", file=sys.stderr)
            bar.update()
    return failures


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_arguments(arguments)
    for name in ("tools", "mask_former", "pisr_maskformer"):
        setup_logger(name=name)
    # our own table says it shorter
    logging.getLogger("mask_former.evaluation.instance").setLevel(logging.WARNING)
    overrides = [*args.opts, *(["MODEL.DEVICE", args.device] if args.device else [])]
    if args.config_file:
        project_config(args.config_file, overrides)
    sources = {
        "baseline": open_source(args.baseline, "baseline", overrides),
        "pisr": open_source(args.pisr, "PISR", overrides),
    }
    output = prepare_output(args.output)
    inputs = open_inputs(args.input, output, args.first)
    comparison = Comparison(sources, inputs, output)
    compared = {side: sources[side].identity() for side in SIDES}
    journal = Journal(output, {**compared, **inputs.identity()})
    with told_when_full(output):
        failures = compare_all(comparison, journal)
        records = journal.records()
        found = None
        if inputs.ground_truth is not None and records:
            found = results(records, journal, comparison.classes, comparison.modes)
            print(markdown(summary_table(found)))
        write_report(output, records, inputs, sources, found, comparison.metadata)
    logger.info("%d images: open %s", len(records), output / PAGE_FILE)
    if failures:
        print(f"error: {failures} of {len(inputs.items)} images failed, see above", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
