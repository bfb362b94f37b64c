"""Deterministic weights, images, targets and predictions behind the numbers in tests/data/reference.

Everything follows from names and indices alone, so the numbers can be made again anywhere, with any
implementation that has the same parameter names. NumPy only: `RandomState` streams are frozen across NumPy
versions, so every machine gets the same bits.

Shapes: C classes · H W image size · n segments · Q queries.
"""

import zlib
from collections.abc import Sequence

import numpy as np


def stream(key: str) -> np.random.RandomState:
    """A random stream that depends on `key` alone."""
    return np.random.RandomState(zlib.crc32(key.encode()))


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """float32 value of the state-dict entry `name`, its scale chosen so that activations stay of order 1."""
    x = stream(name).standard_normal(tuple(shape)).astype("float32")
    if len(shape) >= 2:
        return x / np.sqrt(np.prod(shape[1:])).astype("float32")
    if name.endswith("running_var"):
        return (1 + 0.1 * np.abs(x)).astype("float32")
    if name.endswith("weight"):
        return (1 + 0.1 * x).astype("float32")
    return (0.1 * x).astype("float32")


def image(index: int, height: int, width: int) -> np.ndarray:
    """float32 3×H×W RGB image with values 0..255."""
    return stream(f"image{index}").randint(0, 256, (3, height, width)).astype("float32")


def target(
    index: int, height: int, width: int, num_segments: int, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Class ids (n,) and disjoint boolean masks n×H×W made of 8×8 blocks."""
    r = stream(f"target{index}")
    blocks = r.randint(0, num_segments, ((height + 7) // 8, (width + 7) // 8))
    label = np.kron(blocks, np.ones((8, 8), int))[:height, :width]
    masks = np.stack([label == i for i in range(num_segments)])
    return r.randint(0, num_classes, num_segments), masks


def predictions(
    key: str, num_queries: int, num_classes: int, height: int, width: int, sharpness: float = 8.0
) -> tuple[np.ndarray, np.ndarray]:
    """Confident query outputs: class logits Q×(C+1) and smooth mask logits Q×H×W (multiples of 8)."""
    r = stream(key)
    logits = r.standard_normal((num_queries, num_classes + 1)).astype("float32")
    logits[np.arange(num_queries), r.randint(0, num_classes, num_queries)] += sharpness
    coarse = r.standard_normal((num_queries, height // 8, width // 8)).astype("float32")
    return logits, np.kron(coarse * sharpness - sharpness, np.ones((1, 8, 8), "float32"))
