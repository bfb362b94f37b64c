"""Semantic heatmaps, centres over them, and instance heatmaps (supplement E)."""

import cv2
import numpy as np

from pisr_maskformer.visualization import panels
from pisr_maskformer.visualization.centers import centers_of_class, thing_scores
from pisr_maskformer.visualization.heatmaps import glow
from pisr_maskformer.visualization.instances import (
    Instance,
    closest,
    find_instances,
    instance_heatmaps,
)
from tools.views.look import Look, View

SAME_THING = 0.1  # soft IoU below which a query of the other prediction is not "the same instance"
PAIRS_A_ROW = 2


def semantic_heatmap(look: Look, wanted: str | None) -> View:
    """S_c of one class before and after PISR, each between its own extremes (E.1)."""
    category = look.chosen_class(wanted)
    name = look.names[category]
    maps = {title: stage.semantic_heatmap(category) for title, stage in look.stages().items()}
    pictures = [look.picture(), look.prediction(), *(look.heat(values) for values in maps.values())]
    titles = ["input", "prediction", *(f"“{name}” {_range(title, look, maps[title])}" for title in maps)]
    return View(panels.row(pictures, titles), {"class": name, **_inside(look, maps)})


def centers(look: Look, wanted: str | None) -> View:
    """Instance centres of one class before and after PISR over its semantic heatmap (E.1)."""
    category = look.chosen_class(wanted, only_things=True)
    name = look.names[category]
    heatmaps, peaks = {}, {}
    for title, stage in look.stages().items():
        heatmaps[title] = stage.semantic_heatmap(category)
        scores = thing_scores(stage.class_probs, look.things)
        image = _on_image(look, stage.masks.shape[1:])  # on the padding is nothing
        target = (stage.class_map() == category) & image
        sigma = max(1.0, min(target.shape) / 60)
        peaks[title] = centers_of_class(stage.masks * image, scores, target, sigma=sigma)
    pictures = [look.picture(), look.prediction()]
    pictures += [glow(look.heat(heatmaps[title]), look.enlarged(peaks[title])) for title in peaks]
    titles = ["input", "prediction", *(_centers_title(name, title, peaks[title]) for title in peaks)]
    arrays = {f"semantic {title}": values for title, values in heatmaps.items()}
    arrays |= {f"centers {title}": values for title, values in peaks.items()}
    return View(panels.row(pictures, titles), {"class": name, **_inside(look, arrays)})


def _on_image(look: Look, shape: tuple[int, ...]) -> np.ndarray:
    """bool h×w: what shows the image, not its padding."""
    image = np.zeros(shape, bool)
    look.observation.inside(image)[...] = True
    return image


def _centers_title(name: str, stage: str, peaks: np.ndarray) -> str:
    return f"“{name}” and centres {stage}" if peaks.any() else f"“{name}” {stage}: no centre falls on it"


def instance_heatmap(look: Look, baseline: Look | None, threshold: float, most: int) -> View:
    """Heatmaps of instances with PISR, and of the same things without it (E.2).

    Without: the baseline's, where there is one, else the prediction before PISR.
    """
    stage = look.observation.final
    other = baseline.observation.final if baseline else look.observation.initial
    title = "baseline" if baseline else "before PISR"
    found = find_instances(stage.class_probs, stage.masks, look.things, threshold, most)
    heatmaps = instance_heatmaps(other.class_probs, other.masks, look.things)
    if baseline is not None:  # its input may have another size
        heatmaps = np.stack(
            [_to_size(heatmap, stage.masks.shape[1:], baseline, look) for heatmap in heatmaps]
        )
    pairs = [closest(instance, heatmaps) for instance in found]
    rows = [panels.row([look.picture(), look.prediction()], ["input", "prediction"])]
    if baseline is not None:
        first = [look.picture(), baseline.prediction(), look.prediction()]
        rows = [panels.row(first, ["input", "prediction of the baseline", "prediction with PISR"])]
    cells: list[tuple[np.ndarray, str]] = []
    for instance, (query, overlap) in zip(found, pairs, strict=True):
        cells += _pair(look, instance, heatmaps[query] if overlap >= SAME_THING else None, title)
    for start in range(0, len(cells), 2 * PAIRS_A_ROW):
        pictures, titles = zip(*cells[start : start + 2 * PAIRS_A_ROW], strict=True)
        rows.append(panels.row(pictures, titles))
    if not found:
        rows.append(panels.caption(f"no instance scores above {threshold:g}", rows[0].shape[1]))
    arrays = {
        "names": np.array([look.names[instance.category] for instance in found], dtype=str),
        "scores": np.array([instance.score for instance in found]),
        "with": look.observation.inside(_stack([instance.heatmap for instance in found], stage.masks)),
        "without": look.observation.inside(_stack([heatmaps[query] for query, _ in pairs], stage.masks)),
        "overlaps": np.array([overlap for _, overlap in pairs]),
    }
    return View(panels.column(rows), arrays)


def _pair(
    look: Look, instance: Instance, without: np.ndarray | None, title: str
) -> list[tuple[np.ndarray, str]]:
    """Both cells of one instance. Probabilities, so not stretched: their heights can be compared."""
    name = f"{look.names[instance.category]} {instance.score:.0%}"
    nothing = panels.blank(look.picture(), "no such instance")
    shown = nothing if without is None else look.heat(without, normalise=False)
    return [
        (shown, f"{name}, {title}"),
        (look.heat(instance.heatmap, normalise=False), f"{name}, with PISR"),
    ]


def _to_size(values: np.ndarray, size: tuple[int, ...], source: Look, target: Look) -> np.ndarray:
    """A map of one model's features at the places of another's, zero on its padding."""
    if source.observation.padded == target.observation.padded and values.shape == size:
        return values
    whole = source.observation.on_image(values)
    rows, columns = target.observation.inside(np.zeros(size)).shape
    placed = np.zeros(size, np.float32)
    placed[:rows, :columns] = cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)
    return placed


def _stack(heatmaps: list[np.ndarray], like: np.ndarray) -> np.ndarray:
    return np.stack(heatmaps) if heatmaps else np.zeros((0, *like.shape[1:]), np.float32)


def _inside(look: Look, maps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays as they are saved: without the padding, plain names."""
    return {
        name.replace(" PISR", "").replace(" ", "_"): look.observation.inside(m) for name, m in maps.items()
    }


def _range(title: str, look: Look, values: np.ndarray) -> str:
    inside = look.observation.inside(values)
    return f"{title} ({inside.min():.2f} to {inside.max():.2f})"
