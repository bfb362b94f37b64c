"""A map of numbers as colours over an image: min–max normalised, blue (suppressed) to red (E.1).

Shapes: H×W the image, h×w a map at the features' resolution, Hp×Wp the padded network input.
"""

import math

import cv2
import matplotlib
import numpy as np

COLORMAP = "jet"  # dark blue at 0, red and dark red towards 1, as in the paper's figures


def min_max(values: np.ndarray) -> np.ndarray:
    """float32 in 0..1 of the same shape: 0 at the minimum, 1 at the maximum; all 0 when they are equal.

    ValueError when the map holds nan or an infinity.
    """
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("the map holds values that are not finite")
    if values.size == 0 or values.max() == values.min():
        return np.zeros(values.shape, np.float32)
    return ((values - values.min()) / (values.max() - values.min())).astype(np.float32)


def colorize(values: np.ndarray) -> np.ndarray:
    """uint8 H×W×3 RGB of values 0..1 (what lies outside is clipped): blue to red."""
    table = matplotlib.colormaps[COLORMAP]
    return (table(np.clip(values, 0, 1), bytes=True)[..., :3]).astype(np.uint8)


def overlay(image: np.ndarray, values: np.ndarray, alpha: float = 0.55) -> np.ndarray:
    """uint8 H×W×3: the colours of `values` (H×W, 0..1) over a grey version of the uint8 image.

    Grey, because the image's own colours would read as heat. `alpha` 0 shows the image, 1 the colours alone.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.addWeighted(np.repeat(grey[..., None], 3, axis=2), 1 - alpha, colorize(values), alpha, 0)


def glow(picture: np.ndarray, values: np.ndarray) -> np.ndarray:
    """uint8 H×W×3: white laid over a picture as far as `values` (H×W, 0..1) say."""
    share = np.clip(values, 0, 1)[..., None]
    return np.round(picture * (1 - share) + 255 * share).astype(np.uint8)


def covered(shape: tuple[int, ...], padded: tuple[int, int], resized: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of an h×w map that show the image: those whose centre lies in it, at least one."""
    rows, columns = (
        max(1, math.ceil(extent * count / whole - 0.5))
        for count, whole, extent in zip(shape, padded, resized, strict=True)
    )
    return rows, columns


def on_image(
    values: np.ndarray, padded: tuple[int, int], resized: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """float32 H×W of an h×w map: enlarged to the `padded` input, cut to what the image covers, then `size`.

    All sizes as (height, width): Hp×Wp, the image in the network's input (top left), and H×W. What the map
    holds on the padding does not reach into the image.
    """
    rows, columns = covered(values.shape, padded, resized)
    beyond = [(0, values.shape[0] - rows), (0, values.shape[1] - columns)]
    filled = np.pad(values[:rows, :columns].astype(np.float32), beyond, mode="edge")
    enlarged = cv2.resize(filled, (padded[1], padded[0]), interpolation=cv2.INTER_LINEAR)
    inside = np.ascontiguousarray(enlarged[: resized[0], : resized[1]])
    return cv2.resize(inside, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
