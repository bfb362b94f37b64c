"""Semantic and instance encodings in one plane by t-SNE (C.2): near in D channels, near on paper.

Shapes: n points · D channels.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

FEWEST = 4  # points of a projection that says anything
LEGEND = 18  # classes named
MARKERS = {"semantic": "o", "instance": "^"}


class Points(NamedTuple):
    """Encodings of any number of images: n×D, and for each its kind (a key of MARKERS) and its class."""

    encodings: np.ndarray
    kinds: list[str]
    classes: list[int]


def project(encodings: np.ndarray, seed: int = 0) -> np.ndarray:
    """float32 n×2, the same for the same seed; perplexity 30, or less than a third of the points.

    Channels are brought to one scale first. ValueError with fewer than FEWEST points.
    """
    from sklearn.manifold import TSNE  # takes a second to import, and only this function needs it

    count = len(encodings)
    if count < FEWEST:
        raise ValueError(f"{count} encodings are too few for t-SNE, which needs {FEWEST}")
    spread = encodings.std(axis=0)
    scaled = (encodings - encodings.mean(axis=0)) / np.where(spread > 0, spread, 1)
    perplexity = min(30.0, (count - 1) / 3)
    # PCA cannot start from channels that do not differ, nor from a single one
    start = "pca" if (spread > 0).sum() >= 2 else "random"
    return TSNE(2, perplexity=perplexity, init=start, random_state=seed).fit_transform(
        scaled.astype(np.float32)
    )


def scatter(
    plane: np.ndarray, points: Points, names: Sequence[str], colors: Sequence[Sequence[int]], title: str
) -> Any:
    """A matplotlib figure: markers by kind, colours by class, the most frequent classes in the legend."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    classes = np.array(points.classes)
    rgb = np.array([colors[c] for c in points.classes], dtype=float) / 255
    for kind, marker in MARKERS.items():
        chosen = np.array([found == kind for found in points.kinds])
        if chosen.any():
            size, edge = (70, "black") if kind == "semantic" else (36, "white")
            x, y = plane[chosen].T
            axes.scatter(x, y, s=size, c=rgb[chosen], marker=marker, edgecolors=edge, linewidths=0.6)
    frequent = [c for c, _ in Counter(classes.tolist()).most_common(LEGEND)]
    handles = [_handle(marker, (0.5, 0.5, 0.5), kind) for kind, marker in MARKERS.items()]
    handles += [_handle("s", np.array(colors[c]) / 255, plain(names[c])) for c in sorted(frequent)]
    left_out = len(set(classes.tolist())) - len(frequent)
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1.0, 1.0),
        frameon=False,
        fontsize=9,
        title=f"and {left_out} classes more" if left_out else None,
    )
    axes.set(title=plain(title), xticks=[], yticks=[])
    return figure


def _handle(marker: str, color: Any, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [],
        [],
        linestyle="",
        marker=marker,
        markersize=8,
        markerfacecolor=color,
        markeredgecolor="black",
        label=label,
    )


def plain(text: str) -> str:
    """A text as matplotlib draws it: no mathematics, no half characters, not hidden by a first “_”."""
    readable = " ".join(text.encode("utf-8", "replace").decode().split()).replace("$", r"\$")
    return f" {readable}" if readable.startswith("_") else readable
