"""Make ADE20K's panoptic and semantic labels from the challenge's annotations; `--check` shows what is there.

    python tools/prepare_ade20k.py --check
    python tools/prepare_ade20k.py                    # in place, in $DETECTRON2_DATASETS/ADEChallengeData2016
    python tools/prepare_ade20k.py ROOT --output OTHER    # ROOT stays as it is

Writes annotations_detectron2/, ade20k_panoptic_{train,val}/ and ade20k_panoptic_{train,val}.json (layout and
coding: mask_former/data/ade20k.py). Areas and boxes are measured on the final map. Running it
again, also after it was stopped, writes the same files again.
"""

import argparse
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import _path  # noqa: F401
from mask_former.atomic_write import replace_file
from mask_former.data.ade20k import (
    FOLDER,
    SPLIT_FOLDERS,
    ade20k_categories,
    category_of_id,
    panoptic_ids,
    panoptic_paths,
    semantic_label,
)
from mask_former.data.catalog import datasets_root
from mask_former.data.id_map import (
    measure_segments,
    read_class_map,
    read_image_size,
    read_rgb_label,
    write_id_map,
    write_png,
)
from mask_former.errors import InputError, run_cli

logger = logging.getLogger(__name__)

IMAGE_COUNTS = {"train": 20210, "val": 2000}
SOURCES = """Where to get what is missing (for research, under ADE20K's terms; registration may be asked):
  images, annotations   ADEChallengeData2016.zip of the scene parsing benchmark, sceneparsing.csail.mit.edu
  annotations_instance  annotations_instance.tar of the instance segmentation challenge 2017, on the same site
Unpack both so that the folders stand side by side in ADEChallengeData2016."""

Entries = tuple[dict[str, Any], dict[str, Any]]  # of one image, under the JSON's "images" and "annotations"


@dataclass(frozen=True)
class Split:
    """Where "train" or "val" lies: the challenge's files under `source`, those made here under `output`."""

    name: str
    source: Path
    output: Path

    @property
    def images(self) -> Path:
        return self.source / "images" / SPLIT_FOLDERS[self.name]

    @property
    def scenes(self) -> Path:
        return self.source / "annotations" / SPLIT_FOLDERS[self.name]

    @property
    def instances(self) -> Path:
        return self.source / "annotations_instance" / SPLIT_FOLDERS[self.name]

    @property
    def semantic(self) -> Path:
        return self.output / "annotations_detectron2" / SPLIT_FOLDERS[self.name]

    @property
    def panoptic(self) -> Path:
        return Path(panoptic_paths(self.output, self.name)["panoptic_root"])

    @property
    def json(self) -> Path:
        return Path(panoptic_paths(self.output, self.name)["panoptic_json"])


def convert_image(split: Split, with_instances: bool, name: str) -> Entries | None:
    """Write one image's labels; returns its entries of the JSON, None without instances."""
    scene = read_class_map(split.scenes / f"{name}.png")
    height, width = read_image_size(split.images / f"{name}.jpg")
    _require_size(scene, (height, width), split.scenes / f"{name}.png")
    write_png(split.semantic / f"{name}.png", semantic_label(scene))
    if not with_instances:
        return None
    instance_file = split.instances / f"{name}.png"
    instances = read_rgb_label(instance_file)
    _require_size(instances, (height, width), instance_file)
    try:
        ids = panoptic_ids(scene, instances)
    except InputError as error:
        raise InputError(f"{instance_file}: {error}; unpack the annotations again") from error
    write_id_map(split.panoptic / f"{name}.png", ids)
    segments = [
        {"id": key, "category_id": category_of_id(key), "iscrowd": 0, "area": area, "bbox": box}
        for key, (area, box) in measure_segments(ids).items()
    ]
    image = {"id": name, "file_name": f"{name}.jpg", "height": height, "width": width}
    return image, {"image_id": name, "file_name": f"{name}.png", "segments_info": segments}


def prepare_split(split: Split, workers: int) -> None:
    """Make the labels of one split: panoptic and semantic, or semantic alone where there are no instances."""
    names = sorted(path.stem for path in split.images.glob("*.jpg"))
    if not names:
        raise InputError(f"{split.images}: no .jpg images; run with --check to see the layout expected")
    _require_all(names, split.scenes)
    with_instances = split.instances.is_dir()
    if with_instances:
        _require_all(names, split.instances)
    else:
        reason = "no panoptic labels for this split, only semantic ones, because %s is missing (see --check)"
        logger.warning(f"%s: {reason}", split.name, split.instances)
    split.semantic.mkdir(parents=True, exist_ok=True)
    if with_instances:
        split.panoptic.mkdir(parents=True, exist_ok=True)
        split.json.unlink(missing_ok=True)  # until all is made anew: new PNGs must not meet an old JSON
    convert = partial(convert_image, split, with_instances)
    with multiprocessing.Pool(workers) as pool:
        progress = tqdm(pool.imap(convert, names, chunksize=8), total=len(names), desc=split.name, unit="img")
        converted = list(progress)
    if with_instances:
        write_json(split.json, [entry for entry in converted if entry is not None])
    expected = IMAGE_COUNTS[split.name]
    if len(names) != expected:
        logger.warning("%s: %d images, while the whole data set has %d", split.name, len(names), expected)


def write_json(path: Path, converted: list[Entries]) -> None:
    """Write the COCO-panoptic JSON of a split."""
    images, annotations = zip(*converted, strict=True)
    content = {"images": images, "annotations": annotations, "categories": ade20k_categories()}
    with replace_file(path) as file:
        file.write(json.dumps(content).encode())


def prepare(splits: list[Split], workers: int) -> int:
    """Prepare what can be prepared; exit code 1 when that is nothing."""
    prepared = 0
    for split in splits:
        missing = [folder for folder in (split.images, split.scenes) if not folder.is_dir()]
        if missing:
            logger.warning("%s: left out, because %s is missing", split.name, missing[0])
            continue
        _require_writable(split.output)
        try:
            if split.output.resolve() != split.source.resolve():
                link_images(split)
            prepare_split(split, workers)
        except PermissionError as error:
            raise InputError(f"{error.filename}: cannot be written; name a folder by --output") from error
        prepared += 1
    if not prepared:
        logger.warning("nothing was prepared; run with --check to see what is missing and where to get it")
        return 1
    return 0


def link_images(split: Split) -> None:
    """Let the output folder show the source's images, so that it can stand in for it."""
    split.output.mkdir(parents=True, exist_ok=True)
    images, link = (split.source / "images").resolve(), split.output / "images"
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to where the images no longer are
        link.symlink_to(images, target_is_directory=True)
    elif link.resolve() != images:
        raise InputError(f"{link}: holds other images than {images}; name another folder by --output")


def check(splits: list[Split]) -> int:
    """Print the layout with the files found and expected; exit code 1 when something to read is missing."""
    missing = []
    for split in splits:
        expected = IMAGE_COUNTS[split.name]
        print(f"{split.name}: what the tool reads")
        for folder, suffix in ((split.images, ".jpg"), (split.scenes, ".png"), (split.instances, ".png")):
            found = sum(entry.name.endswith(suffix) for entry in os.scandir(folder)) if folder.is_dir() else 0
            state = "ok" if found >= expected else "partly" if found else "missing"
            print(f"  {state:9}{found:5} of {expected:5}  {folder}")
            if found < expected:
                missing.append(folder)
        print(f"{split.name}: what the tool makes")
        for path in (split.semantic, split.panoptic, split.json):
            print(f"  {'there' if path.exists() else 'not yet':23}  {path}")
    if missing:
        print("\nmissing or incomplete:", *missing, sep="\n  ")
        print(SOURCES)
    return int(bool(missing))


def _require_writable(folder: Path) -> None:
    """Raise InputError when `folder` is marked read-only, which would not stop a container's superuser."""
    if folder.exists() and not folder.stat().st_mode & 0o222:
        raise InputError(f"{folder}: is marked read-only; name another folder by --output")


def _require_all(names: list[str], folder: Path) -> None:
    absent = sorted(set(names) - {path.stem for path in folder.glob("*.png")})
    if absent:
        count = f"{len(absent)} of {len(names)} images"
        raise InputError(f"{folder / absent[0]}.png: missing, as for {count}; unpack the folder again")


def _require_size(label: np.ndarray, size: tuple[int, int], path: Path) -> None:
    if label.shape[:2] != size:
        raise InputError(f"{path}: size {label.shape[:2]} is not its image's {size}; unpack both again")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, from sys.argv when `arguments` is None."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    default, splits = datasets_root() / FOLDER, list(SPLIT_FOLDERS)
    parser.add_argument("root", type=Path, nargs="?", default=default, help=f"default: {default}")
    parser.add_argument("--output", type=Path, help="write here instead, with a link to ROOT's images")
    parser.add_argument("--splits", nargs="+", choices=splits, default=splits)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--check", action="store_true", help="show what is there and what is missing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = parse_arguments(arguments)
    splits = [Split(name, options.root, options.output or options.root) for name in options.splits]
    if options.check:
        return check(splits)
    return prepare(splits, max(1, options.workers))


if __name__ == "__main__":
    sys.exit(run_cli(main))
