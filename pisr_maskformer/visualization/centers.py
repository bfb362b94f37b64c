"""Instance centres as a map (E.1): after non-maximum suppression, masked to a class, blurred to be seen.

Shapes: Q queries · H×W the maps. A MaskFormer predicts no centres; a query's is the centroid of what its mask
is sure of, and its score, the largest probability of a thing class, is the height of the peak there.
"""

from collections.abc import Collection

import cv2
import numpy as np

SMALLEST_MASK = 1e-6  # pixels; a mask below has no centroid
SURE = 0.5  # mask values below do not count: a faint tail over the whole image would pull the centroid away


def centroids(masks: np.ndarray) -> np.ndarray:
    """float64 Q×2: the mean (row, column) weighted by each mask (Q×H×W); nan for an empty mask."""
    weights = masks.reshape(len(masks), -1).astype(np.float64)
    rows, columns = np.divmod(np.arange(weights.shape[1]), masks.shape[2])
    area = weights.sum(axis=1)
    area = np.where(area > SMALLEST_MASK, area, np.nan)
    return np.stack([weights @ rows / area, weights @ columns / area], axis=1)


def thing_scores(class_probs: np.ndarray, things: Collection[int]) -> np.ndarray:
    """Q: the largest probability of a thing class (class_probs Q×C); 0 where no class is a thing."""
    if not things:
        return np.zeros(len(class_probs), class_probs.dtype)
    return class_probs[:, sorted(things)].max(axis=1)


def center_map(masks: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """float32 H×W: at the pixel of each centre the score (the largest, where several fall), 0 elsewhere.

    A centre is the centroid of the mask where it is SURE; a query that is nowhere has none.
    """
    height, width = masks.shape[1:]
    points = np.zeros((height, width), np.float32)
    for (row, column), score in zip(centroids(masks * (masks >= SURE)), scores, strict=True):
        if np.isfinite(row):
            at = min(height - 1, round(row)), min(width - 1, round(column))
            points[at] = max(points[at], score)
    return points


def suppress(points: np.ndarray, radius: int) -> np.ndarray:
    """Non-maximum suppression: what another value within `radius` rows and columns exceeds becomes 0."""
    kernel = np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)
    return np.where(points >= cv2.dilate(points, kernel), points, 0).astype(np.float32)


def centers_of_class(
    masks: np.ndarray, scores: np.ndarray, target: np.ndarray, radius: int = 3, sigma: float = 2.0
) -> np.ndarray:
    """float32 H×W in 0..1: the peaks in `target` (bool H×W) that survive suppression, under a Gaussian.

    A lone peak keeps its score as its height; `sigma` in pixels.
    """
    peaks = suppress(center_map(masks, scores), radius) * target
    blurred = cv2.GaussianBlur(peaks, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)
    impulse = np.zeros((8 * round(sigma) + 3,) * 2, np.float32)
    impulse[len(impulse) // 2, len(impulse) // 2] = 1
    unit = cv2.GaussianBlur(impulse, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT).max()
    return np.clip(blurred / unit, 0, 1)
