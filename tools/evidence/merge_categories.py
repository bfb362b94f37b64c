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
) -> tuple[list[dict[str, Any]], dict[int, int | None]]:
    """What `merged_categories` gives, of the `count` classes that most images have, ids from 1 again.

    Where as many images have two classes, the one that comes first in the annotations. The other categories
    have None. InputError where there are fewer classes.
    """
    images = Counter(
        new
        for annotation in annotations
        for new in sorted({new_of[segment["category_id"]] for segment in annotation["segments_info"]})
    )
    if len(images) < count:
        raise InputError(f"--most-frequent {count}: the images have {len(images)} super-categories only")
    kept = {number for number, _ in images.most_common(count)}
    left = [category for category in merged if category["id"] in kept]
    number = {category["id"]: place for place, category in enumerate(left, start=1)}
    return (
        [{**category, "id": number[category["id"]]} for category in left],
        {old: number.get(new) for old, new in new_of.items()},
    )


def merged_segments(
    ids: np.ndarray,
    segments: Sequence[Mapping[str, Any]],
    new_of: Mapping[int, int | None],
    things: set[int],
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """int32 H×W ids and segments with the new classes (`things`: new ids); one segment a stuff class.

    A segment whose new class is None becomes void.
    """
    ids = ids.copy()
    kept: list[dict[str, Any]] = []
    stuff: dict[int, int] = {}  # new class -> id of its segment
    for segment in segments:
        category = new_of[segment["category_id"]]
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


def read_split(source: Path, split: str, categories: Any = None) -> dict[str, Any]:
    """Its JSON. InputError if its categories are not `categories` (where given), or a segment has another."""
    json_file = source / f"panoptic_{split}.json"
    content = read_panoptic_json(json_file)
    checked = checked_categories(content, json_file)
    if categories is not None and content["categories"] != categories:
        raise InputError(f"{json_file}: has other categories than the first split")
    known = {category["id"] for category in checked}
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            if segment["category_id"] not in known:
                raise InputError(
                    f"{json_file}: {annotation['file_name']} has a segment of the category "
                    f"{segment['category_id']}, which the file does not list"
                )
    return content


def merge_split(
    source: Path,
    output: Path,
    split: str,
    content: Mapping[str, Any],
    merged: Sequence[dict[str, Any]],
    new_of: Mapping[int, int | None],
) -> None:
    """Write one split; the JSON comes last, so that one that is there means that all is there."""
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


def merge(source: Path, output: Path, splits: Sequence[str], most: int | None) -> list[dict[str, Any]]:
    """Write what is missing of the splits; the new categories."""
    first = read_split(source, splits[0])
    merged, of_all = merged_categories(first["categories"])
    new_of: Mapping[int, int | None] = of_all
    if most is not None:
        merged, new_of = most_frequent(merged, of_all, first["annotations"], most)
    there = [split for split in splits if (output / f"panoptic_{split}.json").is_file()]
    for split in there:
        file = output / f"panoptic_{split}.json"
        if read_panoptic_json(file)["categories"] != merged:
            raise InputError(f"{file}: has other classes already; delete it, or choose another folder")
    for split in splits:
        if split not in there:
            content = first if split == splits[0] else read_split(source, split, first["categories"])
            merge_split(source, output, split, content, merged, new_of)
    return merged


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
    classes = merge(args.source, args.output, args.splits, args.most_frequent)
    print(f"{len(classes)} classes: {', '.join(category['name'] for category in classes)}")


if __name__ == "__main__":
    sys.exit(run_cli(main))
