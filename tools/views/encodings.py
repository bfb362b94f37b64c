"""Encodings in a plane (C.2), what the reweighting attends to, and one encoding's relation to every pixel.

Shapes: C classes · N instance slots · E = C + N encodings · D channels · h×w maps.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from detectron2.data.catalog import Metadata

from mask_former.errors import InputError
from pisr_maskformer.visualization import panels
from pisr_maskformer.visualization.centers import thing_scores
from pisr_maskformer.visualization.projection import FEWEST, Points, project, scatter
from pisr_maskformer.visualization.weights import attention_map, bars, per_encoding
from tools.views.look import Look, View, class_index, figure_pixels

MOST_BARS = 24
INSTANCE = "instance:"


def meaningful(look: Look, threshold: float) -> tuple[list[int], list[int], list[int]]:
    """Rows of E that stand for something on this image: positions, their classes, and how many are semantic.

    A class that wins no pixel of the first prediction, and a slot whose query scores `threshold` or less,
    have encodings too, but those are means over next to nothing.
    """
    stage = look.observation.initial
    count = stage.class_probs.shape[1]
    present = np.unique(look.observation.inside(stage.class_map())).tolist()
    scores = thing_scores(stage.class_probs, look.things)
    kept = look.internal("kept")
    slots = [slot for slot, query in enumerate(kept.tolist()) if query >= 0 and scores[query] > threshold]
    things = np.array(look.things)
    classes = [int(things[stage.class_probs[kept[slot]][things].argmax()]) for slot in slots]
    return [*present, *(count + slot for slot in slots)], [*present, *classes], present


def image_points(look: Look, threshold: float) -> Points:
    """The meaningful encodings of one image."""
    rows, classes, present = meaningful(look, threshold)
    kinds = ["semantic"] * len(present) + ["instance"] * (len(rows) - len(present))
    return Points(look.internal("encodings")[rows], kinds, classes)


def encodings(found: Mapping[Path, Points], metadata: Metadata, seed: int) -> View:
    """t-SNE of the semantic and instance encodings of all images in one plane (C.2)."""
    points = Points(
        np.concatenate([part.encodings for part in found.values()]),
        [kind for part in found.values() for kind in part.kinds],
        [category for part in found.values() for category in part.classes],
    )
    if len(points.kinds) < FEWEST:
        raise InputError(
            f"{len(points.kinds)} encodings on {len(found)} images are too few for t-SNE; give more images, "
            "or lower --threshold"
        )
    plane = project(points.encodings, seed)
    counts = {kind: points.kinds.count(kind) for kind in ("semantic", "instance")}
    title = f"t-SNE of {counts['semantic']} semantic and {counts['instance']} instance encodings"
    figure = scatter(plane, points, metadata.stuff_classes, metadata.stuff_colors, title)
    arrays = {
        "encodings": points.encodings,
        "plane": plane,
        "kinds": np.array(points.kinds),
        "classes": np.array(points.classes),
        "image": np.repeat(np.arange(len(found)), [len(part.kinds) for part in found.values()]),
        "files": np.array([str(path).encode("utf-8", "replace").decode() for path in found]),
    }
    return View(figure_pixels(figure), arrays)


def weights(look: Look, threshold: float) -> View:
    """What the reweighting network attends to: on the image, and the largest weights as bars."""
    w = per_encoding(look.internal("weights"))
    count = look.observation.initial.class_probs.shape[1]
    semantic, instance = look.internal("semantic_heatmaps"), look.internal("instance_heatmaps")
    maps = {
        "semantic encodings": attention_map(w[:count], semantic),
        "instance encodings": attention_map(w[count:], instance),
    }
    inside = {name: look.observation.inside(values) for name, values in maps.items()}
    titles = [f"w of {name} ({part.min():.2f} to {part.max():.2f})" for name, part in inside.items()]
    pictures = [look.picture(), look.prediction(), *(look.heat(values) for values in maps.values())]
    row = panels.row(pictures, ["input", "prediction", *titles])

    rows, classes, present = meaningful(look, threshold)
    names = [look.names[c] for c in classes[: len(present)]]
    names += [
        f"{look.names[c]} ({INSTANCE}{slot - count})"
        for slot, c in zip(rows[len(present) :], classes[len(present) :], strict=True)
    ]
    order = np.argsort(-w[rows], kind="stable")[:MOST_BARS].tolist()
    figure = bars(
        [float(w[rows[i]]) for i in order],
        [names[i] for i in order],
        [look.metadata.stuff_colors[classes[i]] for i in order],
        "weights of the encodings that are on the image",
        width=row.shape[1],
    )
    arrays = {
        "weights": look.internal("weights"),
        "valid": look.internal("valid"),
        "kept": look.internal("kept"),
    }
    return View(panels.column([row, figure_pixels(figure)]), {**arrays, "names": np.array(look.names)})


def relations(look: Look, wanted: str | None) -> View:
    """Where one encoding comes from, and its row of F_sp over the image."""
    position, name = chosen_encoding(look, wanted)
    count = look.observation.initial.class_probs.shape[1]
    spatial = look.internal("spatial_features")[position]
    source = look.internal("semantic_heatmaps" if position < count else "instance_heatmaps")
    source = source[position if position < count else position - count]
    inside = look.observation.inside(spatial)
    pictures = [look.picture(), look.prediction(), look.heat(source), look.heat(spatial)]
    titles = [
        "input",
        "prediction",
        f"heatmap of {name}",
        f"F_sp of {name} ({inside.min():.2g} to {inside.max():.2g})",
    ]
    arrays = {"encoding": name, "row": position, "F_sp": inside, "heatmap": look.observation.inside(source)}
    return View(panels.row(pictures, titles), arrays)


def chosen_encoding(look: Look, wanted: str | None) -> tuple[int, str]:
    """Row of E and its name: a class, "instance:SLOT", or the class of most pixels; InputError if none."""
    count = look.observation.initial.class_probs.shape[1]
    if wanted is None or not wanted.startswith(INSTANCE):
        category = look.chosen_class(None) if wanted is None else class_index(wanted, look.names)
        return category, f"“{look.names[category]}”"
    kept = look.internal("kept").tolist()
    slot = wanted.removeprefix(INSTANCE)
    filled = [number for number, query in enumerate(kept) if query >= 0]
    if not slot.isdecimal() or int(slot) not in filled:
        known = f"{INSTANCE}0 to {INSTANCE}{len(filled) - 1}" if filled else "no instance at all"
        raise InputError(f"--encoding {wanted!r} is not among the encodings; there is {known}")
    return count + int(slot), wanted
