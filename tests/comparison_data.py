"""A small data set, saved predictions and images for tests of tools/compare.py, and what it wrote."""

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.catalog import Metadata
from PIL import Image

from mask_former.evaluation.predictions import PanopticWriter
from tests.evaluation_data import CAT, SCENES, SKY, metadata, register, unregister, write_dataset
from tools.compare import main

NAME = "tests_compare"


class Saved(NamedTuple):
    """A prediction: the image's id and file, its map, and {id: contiguous class}."""

    image_id: int | str
    file: Path
    ids: np.ndarray
    classes: dict[int, int]


def save_predictions(folder: Path, metadata: Metadata, predictions: Iterable[Saved]) -> Path:
    """Write them as tools/predict.py does; returns the folder."""
    writer = PanopticWriter(folder, metadata)
    annotations, images = [], []
    for number, saved in enumerate(predictions):
        segments = [{"id": key, "category_id": value} for key, value in saved.classes.items()]
        annotations.append(writer.write(f"{number}", saved.image_id, saved.ids, segments))
        height, width = saved.ids.shape
        entry: dict[str, Any] = {"id": saved.image_id, "file_name": str(saved.file)}
        images.append({**entry, "height": height, "width": width})
    writer.finish(annotations, images)
    return folder


def write_photo(path: Path, height: int, width: int, grey: bool = False) -> Path:
    """Noise as an image, in colour or grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if grey else (height, width, 3)
    pixels = np.random.default_rng(height * width).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def halves(height: int, width: int) -> np.ndarray:
    """Ids 1 above and 2 below."""
    ids = np.ones((height, width), np.int32)
    ids[height // 2 :] = 2
    return ids


def predictions(records: list[dict[str, Any]]) -> dict[str, list[Saved]]:
    """Baseline: sky everywhere; the other: the truth, but in the second scene a cat for the dog."""
    files = [Path(record["file_name"]) for record in records]
    sky = [
        Saved(record["image_id"], file, np.full_like(ids, 3), {3: SKY})
        for record, file, (ids, _) in zip(records, files, SCENES, strict=True)
    ]
    good = [
        Saved(record["image_id"], file, ids, {s["id"]: s["category_id"] for s in infos})
        for record, file, (ids, infos) in zip(records, files, SCENES, strict=True)
    ]
    good[1] = good[1]._replace(classes={5: SKY, 9: CAT})
    return {"baseline": sky, "pisr": good}


@contextmanager
def compared_scenes(folder: Path, without: str = "") -> Iterator[Path]:
    """The data set NAME of two scenes with images, and predictions of both sides; gives the folder.

    `without`: a key that the data set's records lack.
    """
    records = write_dataset(folder)
    for record in records:
        write_photo(Path(record["file_name"]), record["height"], record["width"])
    register(NAME, [{key: value for key, value in record.items() if key != without} for record in records])
    for side, saved in predictions(records).items():
        save_predictions(folder / side, metadata(), saved)
    try:
        yield folder
    finally:
        unregister(NAME)


def run(folder: Path, *more: object, given: object = NAME, output: str = "out") -> int:
    """tools/compare.py on the saved predictions of `compared_scenes`; its exit code."""
    arguments = ["--baseline", folder / "baseline", "--pisr", folder / "pisr", "--input", given]
    return main([str(a) for a in (*arguments, "--output", folder / output, *more)])


def records_of(output: Path) -> list[dict[str, Any]]:
    """The journal's lines."""
    return [json.loads(line) for line in (output / "images.jsonl").read_text().splitlines()]


def page_data(output: Path) -> dict[str, Any]:
    """What the page's script reads."""
    content = (output / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search('id="data">(.*?)</script>', content).group(1))
