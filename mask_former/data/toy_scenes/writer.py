"""Writes toy scenes as a data set in COCO's panoptic layout.

    OUTPUT/{train,val}/000000000001.jpg
    OUTPUT/annotations/panoptic_{train,val}.json      as COCO's
    OUTPUT/annotations/panoptic_{train,val}/000000000001.png
    OUTPUT/annotations/ambiguous_{train,val}.json     the things that only context tells
    OUTPUT/toy_scenes.json                            the arguments it was rendered with

The folder appears whole or not at all: it is rendered under another name beside its place and then renamed.
"""

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2

from mask_former.data.id_map import write_id_map
from mask_former.data.toy_scenes.classes import Vocabulary
from mask_former.data.toy_scenes.scene import MIN_SIZE, SPLITS, Scene, render_scene
from mask_former.data.toy_scenes.story import genre_named
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

# To be raised by whoever changes what render_scene returns, so that an old folder is not taken for a new one.
VERSION = 1
RECEIPT = "toy_scenes.json"
MAX_IMAGES = 1_000_000  # of a split; image ids of the second split start above it
JPEG_OPTIONS = (
    cv2.IMWRITE_JPEG_QUALITY,
    95,
    # Full colour resolution: half of it would smear the surroundings a pixel further into small things.
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
)


def write_toy_scenes(
    output: str | Path,
    num_train: int,
    num_val: int,
    size: int,
    seed: int,
    workers: int = 1,
    genre: str = "marked",
    on_image: Callable[[], object] | None = None,
) -> bool:
    """Render the data set into `output`; False when it is there already, True when it was rendered now.

    workers: processes; neither they nor the number of images change an image. genre: of GENRES.
    on_image: called after each.
    Raises InputError when `output` holds something else, and for arguments out of range.
    """
    output = Path(output)
    counts = dict(zip(SPLITS, (num_train, num_val), strict=True))
    _check_arguments(counts, size, seed, workers, genre)
    receipt = {"version": VERSION, **counts, "size": size, "seed": seed, "genre": genre}
    if _is_there(output, receipt):
        return False
    with _staging_folder(output) as staging:
        for split, count in counts.items():
            for folder in _folders(staging, split):
                folder.mkdir(parents=True)
            work = partial(_write_scene, staging, seed, split, size, genre)
            entries = []
            for entry in _map(work, count, workers):
                entries.append(entry)
                if on_image is not None:
                    on_image()
            _write_annotations(staging / "annotations", split, entries, genre_named(genre).vocabulary)
        _write_json(staging / RECEIPT, receipt)
        _move_into_place(staging, output, receipt)
    logger.info("rendered %d training and %d validation scenes into %s", num_train, num_val, output)
    return True


def _check_arguments(counts: dict[str, int], size: int, seed: int, workers: int, genre: str) -> None:
    for split, count in counts.items():
        if not 0 <= count <= MAX_IMAGES:
            raise InputError(f"toy scenes: {count} images for {split}; use 0 to {MAX_IMAGES}")
    if size < MIN_SIZE:
        raise InputError(f"toy scenes: size {size} is too small to tell the things; use at least {MIN_SIZE}")
    if seed < 0:
        raise InputError(f"toy scenes: seed {seed}; use 0 or more")
    if workers < 1:
        raise InputError(f"toy scenes: {workers} workers; use at least 1")
    genre_named(genre)


def _folders(root: Path, split: str) -> tuple[Path, Path]:
    """Where the images and the panoptic PNGs of a split go."""
    return root / split, root / "annotations" / f"panoptic_{split}"


def _is_there(output: Path, receipt: dict) -> bool:
    """True when `output` holds this very data set, False when nothing is there, else InputError."""
    if output.is_dir() and not any(output.iterdir()):
        return False
    if not output.exists():
        return False
    mend = "choose another folder, or delete this one to render again"
    try:
        found = json.loads((output / RECEIPT).read_text())
        found.setdefault("genre", found.pop("discs", "marked"))  # older ones call it discs, or do not say
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"{output}: is there but was not written by this tool; choose another folder"
        ) from error
    if found != receipt:
        raise InputError(f"{output}: holds toy scenes rendered with {found}, not {receipt}; {mend}")
    for split in SPLITS:
        for folder in _folders(output, split):
            files = len(list(folder.glob("*.*"))) if folder.is_dir() else 0
            if files != receipt[split]:
                raise InputError(f"{folder}: holds {files} files instead of {receipt[split]}; {mend}")
    return True


@contextmanager
def _staging_folder(output: Path) -> Iterator[Path]:
    """A folder beside `output` that is gone in the end, unless it was renamed."""
    staging = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        staging.mkdir(parents=True)
        yield staging
    except OSError as error:
        raise InputError(
            f"{staging.parent}: cannot be written to ({error}); choose another folder"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_into_place(staging: Path, output: Path, receipt: dict) -> None:
    try:
        staging.rename(output)
    except OSError:
        # Someone else may have been faster with the same data set.
        if not _is_there(output, receipt):
            raise


def _map(work: Callable[[int], dict], count: int, workers: int) -> Iterator[dict]:
    """work(0) .. work(count - 1) in order."""
    if workers == 1 or count < 2:
        yield from map(work, range(count))
        return
    # Forked processes need no imports. Zero threads, not one: going down to one, OpenCV waits for threads
    # that a fork does not copy.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(0,)) as pool:
        yield from pool.map(work, range(count), chunksize=max(1, min(16, count // workers)))


def _write_scene(root: Path, seed: int, split: str, size: int, genre: str, index: int) -> dict:
    """Write image and PNG of one scene; its entries for the JSON files."""
    scene = render_scene(seed, split, index, size, genre)
    images, pngs = _folders(root, split)
    image_id = SPLITS.index(split) * MAX_IMAGES + index + 1
    name = f"{image_id:012d}"
    # detectron2's reader of COCO panoptic data expects .jpg images whatever the JSON says.
    _, encoded = cv2.imencode(".jpg", scene.image[..., ::-1], JPEG_OPTIONS)
    (images / f"{name}.jpg").write_bytes(encoded.tobytes())
    write_id_map(pngs / f"{name}.png", scene.ids)
    return {
        "image": {"id": image_id, "file_name": f"{name}.jpg", "height": size, "width": size},
        "annotation": {
            "image_id": image_id,
            "file_name": f"{name}.png",
            "segments_info": [segment.to_coco() for segment in scene.segments],
        },
        "ambiguous": {"image_id": image_id, "things": _ambiguous_things(scene)},
    }


def _ambiguous_things(scene: Scene) -> list[dict]:
    keys = ("id", "category_id", "why", "mistaken_for", "twin")
    return [{key: getattr(segment, key) for key in keys} for segment in scene.segments if segment.why]


def _write_annotations(folder: Path, split: str, entries: list[dict], vocabulary: Vocabulary) -> None:
    panoptic = {
        "info": {"description": "Toy scenes whose context tells what looks cannot", "version": str(VERSION)},
        "licenses": [],
        "images": [entry["image"] for entry in entries],
        "annotations": [entry["annotation"] for entry in entries],
        "categories": vocabulary.categories,
    }
    ambiguous = {
        "pairs": [pair._asdict() for pair in vocabulary.pairs],
        "annotations": [entry["ambiguous"] for entry in entries],
    }
    _write_json(folder / f"panoptic_{split}.json", panoptic)
    _write_json(folder / f"ambiguous_{split}.json", ambiguous)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content) + "\n")
