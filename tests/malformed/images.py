"""Images that no one can read, and images of unusual kinds that must come out right."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mask_former.data.id_map import EXIF_ORIENTATION
from tests.malformed.case import Case, Place, each, evaluate, resume

IMAGES = "{data}/toy/train/"
UNDECODABLE = (IMAGES, "cannot be decoded as an image", "fetch or write it again")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def lower_by_five_rows(path: Path) -> None:
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:-5])


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def claim_to_be_huge(path: Path) -> None:
    """A few bytes whose header speaks of 100,000×100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    content = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content + png_chunk(b"IEND", b""))


def one_pixel(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((1, 1, 3), np.uint8))


def save_turned(pixels: np.ndarray, path: Path, orientation: int) -> None:
    """A JPEG of RGB pixels as they are stored, and the EXIF entry that says how they stand upright."""
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    Image.fromarray(pixels).save(path, exif=exif, quality=100, subsampling=0)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def of_validation(place: Place) -> list[Path]:
    return sorted((place.data / "toy/val").iterdir())


def cut_short_for_evaluation(place: Place) -> list[str]:
    for path in of_validation(place):
        cut_short(path)
    return evaluate(place)


def cut_short_in_a_worker(place: Place) -> list[str]:
    for path in place.images:
        cut_short(path)
    return resume(place, DATALOADER__NUM_WORKERS=1)


def thin(path: Path) -> None:
    cv2.imwrite(str(path), np.zeros((1, 5000, 3), np.uint8))


def thin_for_evaluation(place: Place) -> list[str]:
    for path in of_validation(place):
        thin(path)
    return evaluate(place)


CASES = [
    Case("image cut short", each(lambda p: p.images, cut_short), UNDECODABLE),
    Case("image cut short, in a worker process", cut_short_in_a_worker, UNDECODABLE),
    Case(
        "image cut short, in evaluation",
        cut_short_for_evaluation,
        ("{data}/toy/val/", "cannot be decoded", "fetch or write it again"),
    ),
    Case("image without bytes", each(lambda p: p.images, lambda f: f.write_bytes(b"")), UNDECODABLE),
    Case("text called .jpg", each(lambda p: p.images, lambda f: f.write_text("404\n")), UNDECODABLE),
    Case("image of huge size by its header", each(lambda p: p.images, claim_to_be_huge), UNDECODABLE),
    Case(
        "image missing",
        each(lambda p: p.images, Path.unlink),
        (IMAGES, "no such file", "check the paths of the data set and $DETECTRON2_DATASETS"),
    ),
    Case(
        "folder in the place of an image",
        each(lambda p: p.images, become_folder),
        (IMAGES, "cannot be read (Is a directory)", "check path and permissions"),
    ),
    Case(
        "image that links to itself",
        each(lambda p: p.images, loop),
        (IMAGES, "cannot be read", "check path and permissions"),
    ),
    Case(
        "image of one pixel",
        each(lambda p: p.images, one_pixel),
        ("{data}/toy/annotations/panoptic_train/", "64×64 pixels", "is 1×1", "make them the same size"),
    ),
    Case(
        "image smaller than its label",
        each(lambda p: p.images, lower_by_five_rows),
        (IMAGES, "64×64 pixels", "is 64×59", "make them the same size"),
    ),
    Case(
        "image too narrow to be resized",
        thin_for_evaluation,
        ("{data}/toy/val/", "image of 5000×1 pixels is too narrow to be resized", "crop it"),
    ),
]
