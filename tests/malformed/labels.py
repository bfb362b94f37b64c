"""Panoptic and semantic labels that do not fit their image, their JSON or the model's classes."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.data.id_map import read_id_map, write_id_map
from tests.malformed.case import Case, Place, each, resume
from tests.malformed.images import become_folder, cut_short, lower_by_five_rows, save_turned

PNGS = "{data}/toy/annotations/panoptic_train/"
NOT_RGB = "a label with segment ids must be an 8-bit RGB image, but has"
CONVERT = "convert it, or name the folder of the right PNGs"
SEMANTIC_SET = "toy_semantic"  # the tests register it: toy/train with class maps in toy/classes
CLASS_MAPS = "{data}/toy/classes/"


def repaint(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write the label's three channels as `change` gives them back, in whatever form that is."""
    cv2.imwrite(str(path), change(cv2.imread(str(path), cv2.IMREAD_UNCHANGED)))


def alien_id(path: Path) -> None:
    ids = read_id_map(path)
    ids[:8, :8] = 987654
    write_id_map(path, ids)


def palette_indices(path: Path) -> None:
    """Segment numbers 0, 1, 2, ... as palette indices: the colours are no ids."""
    numbers = np.unique(read_id_map(path), return_inverse=True)[1].reshape(64, 64).astype(np.uint8)
    image = Image.fromarray(numbers)
    image.putpalette(list(range(256)) * 3)
    image.save(path)


def with_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.concatenate([pixels, np.full((64, 64, 1), 255, np.uint8)], axis=2)


def lay_on_its_side(place: Place) -> None:
    """Images of 40×64 pixels by their EXIF orientation, labels of 64×40 as the images are stored."""
    for path in place.images:
        save_turned(cv2.imread(str(path))[:40, :, ::-1], path, orientation=6)
    for path in place.labels:
        repaint(path, lambda pixels: pixels[:40])


PANOPTIC_CASES = [
    Case(
        "label as its image is stored, not as it stands upright",
        lay_on_its_side,
        (PNGS, "the label is 64×40 pixels", "is 40×64 (EXIF rotation applied)", "make them the same size"),
    ),
    Case(
        "label with an id that the JSON does not have",
        each(lambda p: p.labels, alien_id),
        (PNGS, "pixels have the id 987654", "add the segment to the JSON, or paint it 0"),
    ),
    Case(
        "label of another size",
        each(lambda p: p.labels, lower_by_five_rows),
        (PNGS, "the label is 64×59 pixels", "make them the same size"),
    ),
    Case(
        "label narrower than its image",
        each(lambda p: p.labels, lambda f: repaint(f, lambda pixels: pixels[:, :40])),
        (PNGS, "the label is 40×64 pixels", "make them the same size"),
    ),
    Case(
        "label in palette indices",
        each(lambda p: p.labels, palette_indices),
        (PNGS, "pixels have the id", "add the segment to the JSON"),
    ),
    Case(
        "grey label",
        each(lambda p: p.labels, lambda f: repaint(f, lambda pixels: pixels[..., 0])),
        (PNGS, f"{NOT_RGB} 1 channel(s) of uint8", CONVERT),
    ),
    Case(
        "16-bit grey label",
        each(lambda p: p.labels, lambda f: repaint(f, lambda pixels: pixels[..., 0].astype(np.uint16))),
        (PNGS, f"{NOT_RGB} 1 channel(s) of uint16", CONVERT),
    ),
    Case(
        "16-bit colour label",
        each(lambda p: p.labels, lambda f: repaint(f, lambda pixels: pixels.astype(np.uint16))),
        (PNGS, f"{NOT_RGB} 3 channel(s) of uint16", CONVERT),
    ),
    Case(
        "label with an alpha channel",
        each(lambda p: p.labels, lambda f: repaint(f, with_alpha)),
        (PNGS, f"{NOT_RGB} 4 channel(s) of uint8", CONVERT),
    ),
    Case(
        "label cut short",
        each(lambda p: p.labels, cut_short),
        (PNGS, "cannot be decoded as an image", "fetch or write it again"),
    ),
    Case(
        "label missing",
        each(lambda p: p.labels, Path.unlink),
        (PNGS, "no such file", "check the paths of the data set"),
    ),
    Case(
        "folder in the place of a label",
        each(lambda p: p.labels, become_folder),
        (PNGS, "cannot be read (Is a directory)", "check path and permissions"),
    ),
]


def write_class_maps(place: Place) -> None:
    """toy/classes: a class map per training scene, all of class 0."""
    (place.data / "toy/classes").mkdir()
    for path in place.images:
        save(place.data / f"toy/classes/{path.stem}.png", np.zeros((64, 64), np.uint8))


@contextmanager
def semantic_set(place: Place) -> Iterator[None]:
    """The training scenes with class maps, as detectron2 registers its own semantic data sets."""
    folder = place.data / "toy/classes"
    records = [
        {
            "file_name": str(path),
            "sem_seg_file_name": str(folder / f"{path.stem}.png"),
            "height": 64,
            "width": 64,
        }
        for path in place.images
    ]
    names = [category["name"] for category in json.loads(place.json.read_text())["categories"]]
    DatasetCatalog.register(SEMANTIC_SET, lambda: records)
    MetadataCatalog.get(SEMANTIC_SET).set(stuff_classes=names, ignore_label=255)
    try:
        yield
    finally:
        DatasetCatalog.remove(SEMANTIC_SET)
        MetadataCatalog.remove(SEMANTIC_SET)


def semantic_case(name: str, spoil: Callable[[Path], object], *says: str) -> Case:
    """Semantic training on class maps, each of them spoilt."""

    def spoil_all(place: Place) -> list[str]:
        for path in (place.data / "toy/classes").iterdir():
            spoil(path)
        return resume(
            place,
            DATASETS__TRAIN=f"('{SEMANTIC_SET}',)",
            INPUT__DATASET_MAPPER_NAME="mask_former_semantic",
        )

    return Case(name, spoil_all, (CLASS_MAPS, *says))


def save(path: Path, pixels: np.ndarray) -> None:
    Image.fromarray(pixels).save(path)


SEMANTIC_CASES = [
    semantic_case(
        "class map with a class too many",
        lambda f: save(f, np.full((64, 64), 12, np.uint8)),
        "a pixel has class 12, but the model has classes 0..11",
        "correct the label or set MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    ),
    semantic_case(
        "class map of 16 bits with a class far out",
        lambda f: save(f, np.full((64, 64), 40_000, np.uint16)),
        "a pixel has class 40000",
        "correct the label",
    ),
    semantic_case(
        "class map in colours",
        lambda f: save(f, np.zeros((64, 64, 3), np.uint8)),
        "must have one channel (the class of each pixel), but this image has 3",
        "convert its colours to class indices",
    ),
    semantic_case(
        "class map of fractions",
        lambda f: Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(f, format="TIFF"),
        "must hold whole numbers, but this image has float32",
        "convert it to class indices",
    ),
    semantic_case(
        "class map of another size",
        lambda f: save(f, np.zeros((32, 64), np.uint8)),
        "the label is 64×32 pixels",
        "make them the same size",
    ),
    semantic_case(
        "class map cut short", cut_short, "cannot be decoded as an image", "fetch or write it again"
    ),
    semantic_case("class map missing", Path.unlink, "no such file", "check the paths of the data set"),
    semantic_case(
        "folder in the place of a class map",
        become_folder,
        "cannot be read (Is a directory)",
        "check path and permissions",
    ),
]

CASES = PANOPTIC_CASES + SEMANTIC_CASES
