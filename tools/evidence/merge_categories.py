"""COCO panoptic labels with super-categories as classes: 27 in place of 133, for samples of few images.

    python -m tools.evidence.merge_categories datasets/coco/annotations output/coco_merged train2017 val2017

`--most-frequent K` keeps only the K super-categories that most images of the first split have; all else
becomes void. Things keep their instances. Stuff segments of an image that now have one class become one
segment, as stuff must. The output has panoptic_SPLIT.json and panoptic_SPLIT/ as the input has; what is there
already stays.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mask_former.data.id_map import read_id_map, write_id_map
from mask_former.data.panoptic_json import checked_categories, read_panoptic_json
from mask_former.errors import InputError, run_cli
from mask_former.evaluation.metrics_file import write_json
from tools.project import require_writable


def merged_categories(categories: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The super-categories by their first category, ids from 1, and category id -> super-category id."""
    lacking = [category["name"] for category in categories if not category.get("supercategory")]
    if lacking:
        raise InputError(f"the category {lacking[0]!r} has no supercategory, so it cannot be merged; add one")
    order = sorted(categories, key=lambda category: category["id"])
    keys = dict.fromkeys((category["supercategory"], category["isthing"]) for category in order)
    number = {key: place for place, key in enumerate(keys, start=1)}
    merged = [{"id": number[key], "name": key[0], "supercategory": key[0], "isthing": key[1]} for key in keys]
    return merged, {c["id"]: number[c["supercategory"], c["isthing"]] for c in categories}


def most_frequent(
    merged: Sequence[dict[str, Any]],
    new_of: Mapping[int, int],
    annotations: Sequence[Mapping[str, Any]],
    count: int,
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """What `merged_categories` gives, of the `count` classes that most images have, ids from 1 again."""
    images = Counter(
        new
        for annotation in annotations
        for new in {new_of[segment["category_id"]] for segment in annotation["segments_info"]}
    )
    kept = {number for number, _ in images.most_common(count)}
    left = [category for category in merged if category["id"] in kept]
    number = {category["id"]: place for place, category in enumerate(left, start=1)}
    return (
        [{**category, "id": number[category["id"]]} for category in left],
        {old: number[new] for old, new in new_of.items() if new in kept},
    )


def merged_segments(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], new_of: Mapping[int, int], things: set[int]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """int32 H×W ids and segments with the new classes (`things`: new ids); one segment a stuff class.

    A segment whose class has no new one becomes void.
    """
    ids = ids.copy()
    kept: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}  # new class -> id of its segment
    for segment in segments:
        category = new_of.get(segment["category_id"])
        if category is None:
            ids[ids == segment["id"]] = 0
            continue
        if category in stuff:
            ids[ids == segment["id"]] = stuff[category]
            continue
        if category not in things:
            stuff[category] = segment["id"]
        kept.append({"id": segment["id"], "category_id": category, "iscrowd": int(segment.get("iscrowd", 0))})
    return ids, kept


def classes_of(source: Path, split: str, most: int | None) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """The new classes by the categories, and with `most` by the images, of one split."""
    json_file = source / f"panoptic_{split}.json"
    content = read_panoptic_json(json_file)
    merged, new_of = merged_categories(checked_categories(content, json_file))
    return (merged, new_of) if most is None else most_frequent(merged, new_of, content["annotations"], most)


def merge_split(
    source: Path, output: Path, split: str, merged: Sequence[dict[str, Any]], new_of: Mapping[int, int]
) -> None:
    """Write one split; the JSON comes last, so that one that is there means that all is there."""
    content = read_panoptic_json(source / f"panoptic_{split}.json")
    things = {category["id"] for category in merged if category["isthing"]}
    pngs = require_writable(output / f"panoptic_{split}")
    annotations = []
    for annotation in tqdm(content["annotations"], desc=split, unit="image"):
        ids = read_id_map(source / f"panoptic_{split}" / annotation["file_name"])
        ids, segments = merged_segments(ids, annotation["segments_info"], new_of, things)
        write_id_map(pngs / annotation["file_name"], ids)
        annotations.append({**annotation, "segments_info": segments})
    new = {"images": content["images"], "annotations": annotations, "categories": merged}
    write_json(new, output / f"panoptic_{split}.json", indent=None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder of panoptic_SPLIT.json and panoptic_SPLIT/")
    parser.add_argument("output", type=Path, help="folder for the same with merged classes")
    parser.add_argument("splits", nargs="+", metavar="SPLIT", help="such as val2017")
    parser.add_argument("--most-frequent", type=int, metavar="K", help="super-categories (default: all)")
    args = parser.parse_args(arguments)
    if args.most_frequent is not None and args.most_frequent < 1:
        raise InputError(f"--most-frequent {args.most_frequent}: keep one class at least")
    if args.output.resolve() == args.source.resolve():
        raise InputError(f"{args.output}: would be written over its own source; choose another folder")
    merged, new_of = classes_of(args.source, args.splits[0], args.most_frequent)
    for split in args.splits:
        there = args.output / f"panoptic_{split}.json"
        if there.is_file() and read_panoptic_json(there)["categories"] != merged:
            raise InputError(f"{there}: has other classes already; delete it, or choose another folder")
        if not there.is_file():
            merge_split(args.source, args.output, split, merged, new_of)
    print(f"{len(merged)} classes: {', '.join(category['name'] for category in merged)}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
