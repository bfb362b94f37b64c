"""What of ADE20K is there, file by file: the challenge's own files, and what prepare_ade20k.py makes."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from mask_former.data.ade20k_conversion import (
    Converted,
    Split,
    instance_content,
    is_whole,
    panoptic_content,
)
from mask_former.data.ade20k_journal import read_journal
from mask_former.data.parallel import parallel_map

IMAGE_COUNTS = {"train": 20210, "val": 2000}
CHALLENGE = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
INSTANCES = "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar"
SOURCES = f"""Where to get it (for research, under ADE20K's terms; registration may be asked):
  images, annotations   {CHALLENGE}
  annotations_instance  {INSTANCES}
Unpack both so that the three folders stand side by side in ADEChallengeData2016. More about both:
sceneparsing.csail.mit.edu"""
MAKE = "run tools/prepare_ade20k.py without --check"


def check(splits: Sequence[Split], workers: int) -> int:
    """Print the layout with the files found and expected; exit code 1 when something is missing or not whole.

    What has not been made at all is no fault.
    """
    missing, unfit = [], []
    for split in splits:
        print(f"{split.name}: what the tool reads")
        missing += check_sources(split)
        print(f"{split.name}: what the tool makes")
        unfit += check_made(split, workers)
    if missing:
        print("\nmissing:", *missing, sep="\n  ")
        print(SOURCES)
    if unfit:
        print("\nnot whole:", *unfit, sep="\n  ")
    return int(bool(missing or unfit))


def expected_names(split: Split) -> list[str]:
    """The images of a split of the whole data set, which are numbered from 1 without a gap."""
    return [f"ADE_{split.name}_{number:08d}" for number in range(1, IMAGE_COUNTS[split.name] + 1)]


def check_sources(split: Split) -> list[str]:
    """Print what is there of the challenge's files; returns a line for each folder that lacks some."""
    expected, lines = expected_names(split), []
    for folder, suffix in ((split.images, ".jpg"), (split.scenes, ".png"), (split.instances, ".png")):
        found = _stems(folder, suffix)
        absent = [name for name in expected if name not in found]
        state = "ok" if not absent else "partly" if found else "missing"
        print(f"  {state:9}{len(found):5} of {len(expected):5}  {folder}")
        if not folder.is_dir():
            lines.append(f"{folder}: no such folder, and so none of its {len(absent)} files")
        elif absent:
            lines.append(f"{_first(folder, absent, suffix)}: no such file")
    return lines


def check_made(split: Split, workers: int) -> list[str]:
    """Print what is there of the files made; returns a line for each kind that is not whole."""
    names, journal = split.image_names(), read_journal(split.journal)
    paths = [split.semantic, split.panoptic, split.panoptic_json, split.instance_json]
    if not any(path.exists() for path in paths):
        for path in paths:
            print(f"  {'not yet':23}  {path}")
        return []
    if not journal:
        for path in paths:
            print(f"  {'unknown' if path.exists() else 'not yet':23}  {path}")
        print(f"  These were not made by this tool, which would make them again. {MAKE.capitalize()}.")
        return []
    images = [journal[name] for name in names if name in journal]
    lines = _check_images(split, names, images, workers)
    with_instances = all(image.segments is not None for image in images)
    lines += _check_json(split, images) if with_instances and not lines else []
    for path in paths:
        state = "there" if path.exists() else "not yet"
        print(f"  {state if not lines else f'{state}, see below':23}  {path}")
    return lines


def _check_images(split: Split, names: Sequence[str], images: Sequence[Converted], workers: int) -> list[str]:
    """Lines about PNG files that are not those of the journal, and about those of no image."""
    flags = parallel_map(partial(is_whole, split), images, min(workers, len(images) or 1), batch=32)
    progress = tqdm(flags, total=len(images), desc=split.name, unit="img", leave=False)
    whole = {image.name for image, flag in zip(images, progress, strict=True) if flag}
    lines = []
    if absent := [name for name in names if name not in whole]:
        first = _first(split.semantic, absent, ".png")
        lines.append(f"{first}: labels not made, or not of the files that are there now; {MAKE}")
    for folder in (split.semantic, split.panoptic):
        if more := sorted(_stems(folder, ".png") - set(names)):
            lines.append(f"{_first(folder, more, '.png')}: a label without an image; delete it")
    return lines


def _check_json(split: Split, images: Sequence[Converted]) -> list[str]:
    lines = []
    for path, content in (
        (split.panoptic_json, panoptic_content(images)),
        (split.instance_json, instance_content(images)),
    ):
        if not path.exists():
            lines.append(f"{path}: no such file; {MAKE}")
        elif path.read_bytes() != content:
            lines.append(f"{path}: does not tell of the PNGs that are there; {MAKE}")
    return lines


def _first(folder: Path, names: Sequence[str], suffix: str) -> str:
    """The path of the first file, and how many more there are."""
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{folder / names[0]}{suffix}{more}"


def _stems(folder: Path, suffix: str) -> set[str]:
    entries = os.scandir(folder) if folder.is_dir() else ()
    return {entry.name.removesuffix(suffix) for entry in entries if entry.name.endswith(suffix)}
