"""What the reweighting network attends to: its weights w as bars, and on the image.

Shapes: E encodings · N instance slots · D channels · H×W the maps.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pisr_maskformer.visualization.projection import plain

SMALLEST = 1e-8
DPI = 120


def per_encoding(weights: np.ndarray) -> np.ndarray:
    """float32 E of w E×1, or of w E×D as the mean over channels."""
    return weights.astype(np.float32).mean(axis=1)


def attention_map(weights: np.ndarray, heatmaps: np.ndarray) -> np.ndarray:
    """float32 H×W: the mean weight of the encodings that claim a pixel, weighted by their heatmaps (E×H×W).

    0 where none does.
    """
    total = heatmaps.sum(axis=0)
    return (np.tensordot(weights, heatmaps, axes=1) / np.maximum(total, SMALLEST)).astype(np.float32)


def bars(
    values: Sequence[float],
    labels: Sequence[str],
    colors: Sequence[Sequence[int]],
    title: str,
    width: int,
) -> Any:
    """A matplotlib figure, `width` pixels wide, of bars in 0..1, the first on top; colours 0..255."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / DPI, 1.2 + 0.22 * len(values)), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = np.arange(len(values))
    axes.barh(places, values, color=np.array(colors, dtype=float).reshape(-1, 3) / 255, edgecolor="#444")
    axes.set_yticks(places, [plain(label) for label in labels], fontsize=8)
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="weight w", title=plain(title))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
