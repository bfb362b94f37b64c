"""Make ADE20K's panoptic, instance and semantic labels from the challenge's annotations.

    python tools/prepare_ade20k.py --check            # what is there, what is missing, where to get it
    python tools/prepare_ade20k.py                    # in place, in $DETECTRON2_DATASETS/ADEChallengeData2016
    python tools/prepare_ade20k.py ROOT --output OTHER    # ROOT stays as it is

Writes annotations_detectron2/, ade20k_panoptic_{train,val}/ and their JSON (layout and coding:
mask_former/data/ade20k.py), the things alone as ade20k_instance_{train,val}.json, and a journal,
prepare_ade20k_{train,val}.jsonl. Areas, boxes and masks are those of the final PNG, read back from the disk.
A run that was stopped, by whatever, goes on where it was; a finished one changes nothing. Only images whose
labels or sources are not those of the journal are made again.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

import _path  # noqa: F401
from mask_former.atomic_write import remove_leftovers
from mask_former.data.ade20k import FOLDER, SPLIT_FOLDERS
from mask_former.data.ade20k_conversion import (
    Converted,
    Split,
    convert_image,
    instance_content,
    is_whole,
    panoptic_content,
)
from mask_former.data.ade20k_journal import (
    journal_content,
    only_run,
    open_journal,
    read_journal,
    write_if_changed,
)
from mask_former.data.catalog import datasets_root
from mask_former.data.parallel import parallel_map
from mask_former.errors import InputError, run_cli
from tools.ade20k_check import IMAGE_COUNTS, check
from tools.checks.machine import usable_cores

logger = logging.getLogger(__name__)


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
            with only_run(split.output):
                prepare_split(split, workers)
        except OSError as error:
            where, reason = error.filename or split.output, error.strerror or error
            raise InputError(
                f"{where}: cannot be written ({reason}); mend that or name a folder by --output, and run "
                "again: what is done is kept"
            ) from error
        prepared += 1
    if not prepared:
        logger.warning("nothing was prepared; run with --check to see what is missing and where to get it")
        return 1
    return 0


def prepare_split(split: Split, workers: int) -> None:
    """Make the labels of one split: all of them, or the semantic ones alone where there are no instances."""
    names = split.image_names()
    if not names:
        raise InputError(f"{split.images}: no .jpg images; run with --check to see the layout expected")
    _require_all(names, split.scenes)
    if split.instances.is_dir():
        _require_all(names, split.instances)
        split.panoptic.mkdir(parents=True, exist_ok=True)
    split.semantic.mkdir(parents=True, exist_ok=True)
    for folder in (split.output, split.semantic, split.panoptic):
        if folder.is_dir():
            remove_leftovers(folder)
    whole = find_whole(split, names, workers)
    images = whole + make(split, whole, [*set(names) - {image.name for image in whole}], workers)
    finish(split, sorted(images, key=lambda image: image.name))
    if len(names) != IMAGE_COUNTS[split.name]:
        logger.warning(
            "%s: %d images, while the whole data set has %d",
            split.name,
            len(names),
            IMAGE_COUNTS[split.name],
        )


def find_whole(split: Split, names: Sequence[str], workers: int) -> list[Converted]:
    """The images that the journal knows and whose files are still those it tells of."""
    journal = read_journal(split.journal)
    known = [journal[name] for name in names if name in journal]
    if not known:
        return []
    flags = parallel_map(partial(is_whole, split), known, min(workers, len(known)), batch=32)
    progress = tqdm(flags, total=len(known), desc=f"{split.name}, there already", unit="img")
    whole = [image for image, flag in zip(known, progress, strict=True) if flag]
    logger.info("%s: %d of %d images are whole already", split.name, len(whole), len(names))
    return whole


def make(split: Split, whole: Sequence[Converted], names: Sequence[str], workers: int) -> list[Converted]:
    """Convert the images called `names`, with the journal kept; `whole` is what it holds before."""
    if not names:
        return []
    for path in (split.panoptic_json, split.instance_json):
        path.unlink(missing_ok=True)  # until all is made: new PNGs must not meet an old JSON
    made = []
    with open_journal(split.journal, whole) as add_to_journal:
        converted = parallel_map(partial(convert_image, split), sorted(names), min(workers, len(names)))
        for image in tqdm(converted, total=len(names), desc=split.name, unit="img"):
            add_to_journal(image)
            made.append(image)
    return made


def finish(split: Split, images: Sequence[Converted]) -> None:
    """Write the JSON files, when every image has its instances, and sort the journal."""
    if all(image.segments is not None for image in images):
        write_if_changed(split.panoptic_json, panoptic_content(images))
        write_if_changed(split.instance_json, instance_content(images))
    else:
        reason = "no panoptic labels for this split, only semantic ones, because %s is missing (see --check)"
        logger.warning(f"%s: {reason}", split.name, split.instances)
    write_if_changed(split.journal, journal_content(images))


def link_images(split: Split) -> None:
    """Let the output folder show the source's images, so that it can stand in for it."""
    split.output.mkdir(parents=True, exist_ok=True)
    images, link = (split.source / "images").resolve(), split.output / "images"
    if not link.exists():
        link.unlink(missing_ok=True)  # a link to where the images no longer are
        link.symlink_to(images, target_is_directory=True)
    elif link.resolve() != images:
        raise InputError(f"{link}: holds other images than {images}; name another folder by --output")


def _require_writable(folder: Path) -> None:
    """Raise InputError when `folder` is marked read-only, which would not stop a container's superuser."""
    if folder.exists() and not folder.stat().st_mode & 0o222:
        raise InputError(f"{folder}: is marked read-only; name another folder by --output")


def _require_all(names: list[str], folder: Path) -> None:
    absent = sorted(set(names) - {path.stem for path in folder.glob("*.png")})
    if absent:
        count = f"{len(absent)} of {len(names)} images"
        raise InputError(f"{folder / absent[0]}.png: missing, as for {count}; unpack the folder again")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, from sys.argv when `arguments` is None."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    default, splits = datasets_root() / FOLDER, list(SPLIT_FOLDERS)
    parser.add_argument("root", type=Path, nargs="?", default=default, help=f"default: {default}")
    parser.add_argument("--output", type=Path, help="write here instead, with a link to ROOT's images")
    parser.add_argument("--splits", nargs="+", choices=splits, default=splits)
    parser.add_argument(
        "--workers", type=int, default=usable_cores(), help="processes (default: %(default)s)"
    )
    parser.add_argument("--check", action="store_true", help="show what is there and what is missing")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    options = parse_arguments(arguments)
    if options.workers < 1:
        raise InputError(f"--workers {options.workers}: use at least 1")
    splits = [Split(name, options.root, options.output or options.root) for name in options.splits]
    if options.check:
        return check(splits, options.workers)
    return prepare(splits, options.workers)


if __name__ == "__main__":
    sys.exit(run_cli(main))
