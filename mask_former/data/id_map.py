"""Images and label maps on disk: RGB images, COCO-panoptic id maps, single-channel class maps.

Shape legend: H×W the image, n the segments of a map.
A panoptic PNG codes the segment of a pixel as id = R + 256 G + 65536 B; id 0 is void.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.ndimage import find_objects

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError

VOID_ID = 0
MAX_ID = 2**24 - 1  # three channels of 8 bit
EXIF_ORIENTATION = 0x0112
# what Pillow raises on files that it cannot read; of the last, on a header that claims a huge size
PILLOW_ERRORS = (
    UnidentifiedImageError,
    OSError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
)


def read_rgb_image(path: str | Path) -> np.ndarray:
    """An image of any format OpenCV reads as uint8 H×W×3 RGB, turned upright by its EXIF orientation.

    Grey, palette and 16-bit images become 8-bit RGB, an alpha channel is dropped. InputError names a file
    that is missing or cannot be decoded.
    """
    image = _decode(path, cv2.IMREAD_COLOR)
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def read_image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) that `read_rgb_image` would return, from the file's header alone."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(EXIF_ORIENTATION, 1) >= 5  # 5..8 swap rows and columns
    except PILLOW_ERRORS as error:
        raise InputError(_why_unreadable(path, error)) from error
    return (width, height) if turned else (height, width)


def read_rgb_label(path: str | Path) -> np.ndarray:
    """A label whose numbers are in the channels, as uint8 H×W×3 RGB; InputError unless it is 8-bit RGB."""
    return _read_bgr_label(path)[..., ::-1]


def read_id_map(path: str | Path) -> np.ndarray:
    """A panoptic PNG as int32 H×W of segment ids, 0 = void; InputError unless it is an 8-bit RGB image."""
    bgr = _read_bgr_label(path)
    # the four bytes of a number, the least first, are R, G, B and 0
    quads = np.zeros((*bgr.shape[:2], 4), np.uint8)
    cv2.mixChannels([bgr], [quads], [2, 0, 1, 1, 0, 2])
    return quads.view("<i4")[..., 0].astype(np.int32, copy=False)


def write_id_map(path: str | Path, ids: np.ndarray) -> None:
    """Write H×W segment ids as a panoptic PNG; the file appears whole or not at all.

    Raises ValueError on ids that three bytes cannot hold.
    """
    if ids.ndim != 2 or (ids.size and not 0 <= int(ids.min()) <= int(ids.max()) <= MAX_ID):
        raise ValueError(f"a panoptic PNG holds one id of 0..{MAX_ID} per pixel of a two-dimensional map")
    ids = ids.astype(np.int64)
    write_png(path, np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8))


def read_class_map(path: str | Path) -> np.ndarray:
    """A semantic label (8 or 16 bit, grey or palette indices) as int32 H×W of the values in the file.

    InputError when the file is missing, cannot be decoded or holds colours instead of one channel.
    """
    try:
        # PIL, because OpenCV replaces palette indices by their colours
        with Image.open(path) as image:
            values = np.asarray(image)
    except PILLOW_ERRORS as error:
        raise InputError(_why_unreadable(path, error)) from error
    if values.dtype.kind not in "bui":
        raise InputError(
            f"{path}: a semantic label must hold whole numbers, but this image has {values.dtype}; "
            "convert it to class indices"
        )
    if values.ndim != 2:
        raise InputError(
            f"{path}: a semantic label must have one channel (the class of each pixel), but this image has "
            f"{values.shape[2]}; convert its colours to class indices"
        )
    return values.astype(np.int32)


def write_png(path: str | Path, pixels: np.ndarray) -> None:
    """Write uint8 H×W or H×W×3 (RGB) as PNG; the file appears whole or not at all."""
    with replace_file(path) as file:
        Image.fromarray(pixels).save(file, format="PNG")


@dataclass(frozen=True)
class Runs:
    """A map as stretches of equal numbers, row after row. Label maps have few: a hundredth of their pixels.

    values: the numbers of the map, sorted · positions: of each stretch in `values` · lengths: of each, in
    pixels · shape: of the map.
    """

    values: np.ndarray
    positions: np.ndarray
    lengths: np.ndarray
    shape: tuple[int, ...]

    def paint(self, numbers: np.ndarray) -> np.ndarray:
        """The map with numbers[i] where values[i] was."""
        return np.repeat(numbers[self.positions], self.lengths).reshape(self.shape)


def find_runs(ids: np.ndarray) -> Runs:
    """The runs of an H×W map."""
    flat = ids.ravel()
    starts = np.flatnonzero(np.concatenate([np.ones(min(flat.size, 1), bool), flat[1:] != flat[:-1]]))
    values, positions = np.unique(flat[starts], return_inverse=True)
    return Runs(values, positions, np.diff(np.append(starts, flat.size)), ids.shape)


def unique_ids(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The sorted values of an H×W map, and int32 H×W positions in them: `values[positions] == ids`.

    Same as numpy's unique with inverse, but the runs are sorted instead of the pixels: about a hundred times
    faster.
    """
    runs = find_runs(ids)
    return runs.values, runs.paint(np.arange(len(runs.values), dtype=np.int32))


def measure_segments(ids: np.ndarray) -> dict[int, tuple[int, list[int]]]:
    """Area in pixels and box [x, y, width, height] of every id except void in an H×W map, by ascending id."""
    values, positions = unique_ids(ids)
    areas = np.bincount(positions.ravel(), minlength=len(values))
    windows = find_objects(positions + 1)  # bounding slices of the labels 1, 2, ...
    measured = {}
    for value, area, (rows, columns) in zip(values, areas, windows, strict=True):
        if value != VOID_ID:
            box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
            measured[int(value)] = (int(area), box)
    return measured


def _read_bgr_label(path: str | Path) -> np.ndarray:
    image = _decode(path, cv2.IMREAD_UNCHANGED)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        channels = 1 if image.ndim == 2 else image.shape[2]
        raise InputError(
            f"{path}: a label with segment ids must be an 8-bit RGB image, but has {channels} channel(s) "
            f"of {image.dtype}; convert it, or name the folder of the right PNGs"
        )
    return image


def _decode(path: str | Path, flags: int) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(_why_unreadable(path, error)) from error
    try:
        image = cv2.imdecode(data, flags) if data.size else None
    except cv2.error as error:
        raise InputError(_why_unreadable(path, error)) from error
    if image is None:
        raise InputError(_why_unreadable(path))
    return image


def _why_unreadable(path: str | Path, error: Exception | None = None) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{path}: no such file; check the paths of the data set and $DETECTRON2_DATASETS"
    if isinstance(error, OSError) and error.strerror:  # Pillow's own have no number of the system's
        return f"{path}: cannot be read ({error.strerror}); check path and permissions"
    return (
        f"{path}: cannot be decoded as an image (damaged, cut short, or of a format other than JPEG, PNG, "
        "WebP, BMP or TIFF?); fetch or write it again"
    )
