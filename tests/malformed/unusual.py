"""Unusual images, labels and JSON files that are valid, and what must come of them.

Every image shows the same 40 rows of 24 pixels: the upper half red, the lower half blue.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from mask_former.data.id_map import read_id_map
from tests.malformed.case import Place
from tests.malformed.images import save_turned

HEIGHT, WIDTH = 40, 24
RED, BLUE = (254, 0, 0), (0, 0, 254)
LOSSLESS_NEARLY: dict[str, Any] = {"quality": 100, "subsampling": 0}


def upright() -> np.ndarray:
    """The picture, uint8 HEIGHT×WIDTH×3 RGB."""
    rows = np.array([RED, BLUE], np.uint8).repeat(HEIGHT // 2, axis=0)
    return rows[:, None].repeat(WIDTH, axis=1)


def grey() -> np.ndarray:
    """Its red channel in all three."""
    return upright()[..., :1].repeat(3, axis=2)


def save_16_bits(path: Path) -> None:
    cv2.imwrite(str(path), upright()[..., ::-1].astype(np.uint16) * 257)


def save_16_bits_grey(path: Path) -> None:
    cv2.imwrite(str(path), grey()[..., 0].astype(np.uint16) * 257)


def save_grey(path: Path) -> None:
    Image.fromarray(grey()[..., 0]).save(path, quality=100)


def save_transparent(path: Path) -> None:
    image = Image.fromarray(upright()).convert("RGBA")
    image.putalpha(10)
    image.save(path)


def save_as(mode: str, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(upright()).convert(mode).save(path, **options)


def turned(orientation: int, quarters: int) -> Callable[[Path], None]:
    """Stored with `quarters` turns counter-clockwise, which the EXIF orientation takes back."""
    return lambda path: save_turned(np.rot90(upright(), quarters), path, orientation)


# By name: the file, what writes it, the RGB pixels that must be read.
IMAGES: dict[str, tuple[str, Callable[[Path], object], np.ndarray]] = {
    "16-bit PNG": ("a.png", save_16_bits, upright()),
    "16-bit grey PNG": ("a.png", save_16_bits_grey, grey()),
    "grey JPEG": ("a.jpg", save_grey, grey()),
    "palette PNG": ("a.png", save_as("P"), upright()),
    "transparent PNG": ("a.png", save_transparent, upright()),
    "CMYK JPEG": ("a.jpg", save_as("CMYK", **LOSSLESS_NEARLY), upright()),
    "progressive JPEG": ("a.jpg", save_as("RGB", **LOSSLESS_NEARLY, progressive=True), upright()),
    "lossless WebP": ("a.webp", save_as("RGB", lossless=True), upright()),
    "TIFF": ("a.tif", save_as("RGB"), upright()),
    "PNG called .jpg": ("a.jpg", save_as("RGB", format="PNG"), upright()),
    "JPEG on its head by EXIF": ("a.jpg", turned(3, quarters=2), upright()),
    "JPEG turned by EXIF": ("a.jpg", turned(6, quarters=1), upright()),
    "JPEG turned the other way by EXIF": ("a.jpg", turned(8, quarters=3), upright()),
}


def lossless_palette(place: Place) -> None:
    """Labels as palette images whose colours are the ids: what a program that shrinks PNGs leaves."""
    for path in place.labels:
        with Image.open(path) as image:
            reduced = image.convert("P", palette=Image.Palette.ADAPTIVE, colors=256)
        before = read_id_map(path)
        reduced.save(path)
        assert (read_id_map(path) == before).all() and reduced.mode == "P"


def segments_without_pixels(place: Place) -> None:
    """Every annotation lists a segment that its PNG does not have."""
    rewrite(place, lambda a: a["segments_info"].append({"id": 4_000_000, "category_id": 1, "iscrowd": 0}))


def no_segments(place: Place) -> None:
    """Images without ground truth: nothing listed, nothing painted."""
    rewrite(place, lambda a: a.update(segments_info=[]))
    for path in place.labels:
        Image.new("RGB", (64, 64)).save(path)


def flags_as_truth_values(place: Place) -> None:
    rewrite(place, lambda a: [s.update(iscrowd=bool(s["iscrowd"])) for s in a["segments_info"]])


def byte_order_mark(place: Place) -> None:
    place.json.write_bytes(b"\xef\xbb\xbf" + place.json.read_bytes())


def rewrite(place: Place, change: Callable[[dict], object]) -> None:
    content = json.loads(place.json.read_text())
    for annotation in content["annotations"]:
        change(annotation)
    place.json.write_text(json.dumps(content))


# Data sets that a run must take.
DATA_SETS: dict[str, Callable[[Place], None]] = {
    "labels in a lossless palette": lossless_palette,
    "segments without pixels": segments_without_pixels,
    "images without segments": no_segments,
    "crowd as true and false": flags_as_truth_values,
    "JSON with a byte order mark": byte_order_mark,
}
