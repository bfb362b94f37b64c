"""What a data set's classes are, and how to look a data set up in detectron2's catalogs.

C: number of classes. Contiguous ids are 0..C-1 in the order of the model's outputs; dataset ids are those of
the annotation files. The fields are those of detectron2's own COCO panoptic data sets
(`coco_2017_*_panoptic`): `thing_classes` and `stuff_classes` both name all C classes, so that detectron2's
visualisers work unchanged.
"""

import colorsys
import difflib
import itertools
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.catalog import Metadata

from mask_former.data.panoptic_json import read_categories
from mask_former.errors import InputError

logger = logging.getLogger(__name__)

IGNORE_LABEL = 255  # value of pixels without a class in semantic labels
BUILTIN_DATASETS = frozenset(DatasetCatalog.list())  # those that detectron2 registers by itself


def datasets_root() -> Path:
    """The folder that relative data set paths start from: $DETECTRON2_DATASETS, or ./datasets."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def class_colors(count: int) -> list[list[int]]:
    """`count` distinct RGB triples (0..255), the same ones every time; neighbours differ strongly in hue."""
    golden_ratio = 0.618033988749895
    colors: list[list[int]] = []
    steps = itertools.count()
    while len(colors) < count:
        # three saturations and five values on top, so that hues that come round again still look different:
        # they nearly do after 144 steps (Fibonacci's number), which is no multiple of 15
        step = next(steps)
        hue = step * golden_ratio % 1.0
        rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.5, 0.7)[step % 3], (0.9, 0.98, 0.65, 0.8, 0.72)[step % 5])
        color = [round(255 * value) for value in rgb]
        if color not in colors:  # rounding makes a few meet among many hundreds
            colors.append(color)
    return colors


def panoptic_metadata(categories: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Metadata entries about classes, from COCO-style categories {"id", "name", "isthing", optional "color"}.

    Contiguous ids follow ascending dataset ids. Given colours are kept when every category has one.
    """
    ordered = sorted(categories, key=lambda category: category["id"])
    names = [str(category["name"]) for category in ordered]
    colors = class_colors(len(ordered))
    if all("color" in category for category in ordered):
        colors = [list(category["color"]) for category in ordered]
    contiguous = {category["id"]: index for index, category in enumerate(ordered)}
    things = {category["id"] for category in ordered if category["isthing"]}
    return {
        "thing_classes": names,
        "stuff_classes": list(names),
        "thing_colors": colors,
        "stuff_colors": [list(color) for color in colors],
        "thing_dataset_id_to_contiguous_id": {
            key: index for key, index in contiguous.items() if key in things
        },
        "stuff_dataset_id_to_contiguous_id": {
            key: index for key, index in contiguous.items() if key not in things
        },
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
    }


def thing_ids(metadata: Metadata) -> list[int]:
    """Contiguous ids of the thing classes, ascending; empty for a data set with semantic labels only."""
    return sorted(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())


def dataset_ids(metadata: Metadata) -> dict[int, int]:
    """Contiguous id -> dataset id of every class, by ascending contiguous id.

    A data set with semantic labels only has no other numbering: its ids map to themselves.
    """
    contiguous = {
        **getattr(metadata, "stuff_dataset_id_to_contiguous_id", {}),
        **getattr(metadata, "thing_dataset_id_to_contiguous_id", {}),
    }
    if not contiguous:
        return {index: index for index in range(len(metadata.stuff_classes))}
    return dict(sorted((index, key) for key, index in contiguous.items()))


def dataset_records(name: str) -> list[dict[str, Any]]:
    """The records of a registered data set; InputError when it is unknown, or its files are not there."""
    _require_registered(name)
    try:
        return DatasetCatalog.get(name)
    except (FileNotFoundError, NotADirectoryError, AssertionError) as error:  # from detectron2's own loaders
        path = getattr(error, "filename", None)
        problem = f"{path} is missing" if path else " ".join(str(error).split())
        raise InputError(
            f"data set {name}: {problem}; check $DETECTRON2_DATASETS (now {datasets_root().resolve()})"
        ) from error


def dataset_metadata(name: str) -> Metadata:
    """The metadata of a registered data set; its classes are read from its JSON when they are not known yet.

    InputError when the data set is unknown (detectron2 makes up an empty one) or its JSON missing or unfit.
    """
    _require_registered(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("stuff_classes") and metadata.get("panoptic_json"):
        metadata.set(**panoptic_metadata(read_categories(metadata.panoptic_json)))
    return metadata


def first_metadata(names: Sequence[str]) -> Metadata:
    """The metadata of the first of these data sets (at least one) whose classes this machine has.

    A machine that evaluates need not have the training data. InputError naming the first one's JSON when
    none is there.
    """
    return dataset_metadata(_with_classes_here(names)[0])


def require_same_classes(names: Sequence[str]) -> Metadata:
    """`first_metadata`, once the data sets (at least one) are known to have the same classes.

    That is: the same names in the same order and, where both have a thing/stuff split, the same split. Those
    whose JSON is not on this machine are not compared, with a warning. InputError names two that differ and
    the first difference, or one that has no classes for segmentation.
    """
    classes = {name: dataset_metadata(name) for name in _with_classes_here(names)}
    for name in names:
        if name not in classes:
            logger.warning("data set %s is not here: its classes are not compared with the others'", name)
        elif not classes[name].get("stuff_classes"):
            raise InputError(
                f"data set {name} has boxes or instances only; DATASETS needs panoptic or semantic labels"
            )
    for (one, its), (other, others) in itertools.combinations(classes.items(), 2):
        difference = first_difference(its, others)
        if difference:
            raise InputError(
                f"data sets {one} and {other} differ in their classes: {difference}; "
                "all of DATASETS.TRAIN and TEST must have the same"
            )
    return next(iter(classes.values()))


def _with_classes_here(names: Sequence[str]) -> list[str]:
    """The data sets whose classes are known or can be read; only the first of all when there is none."""
    here = []
    for name in names:
        _require_registered(name)
        metadata = MetadataCatalog.get(name)
        json_file = metadata.get("panoptic_json")
        if metadata.get("stuff_classes") or not json_file or Path(json_file).exists():
            here.append(name)
    return here or list(names[:1])


def first_difference(first: Metadata, other: Metadata) -> str | None:
    """The first class that two data sets call differently, or that is a thing in one of them only."""
    name_lists = ([name.strip() for name in metadata.stuff_classes] for metadata in (first, other))
    for index, (here, there) in enumerate(itertools.zip_longest(*name_lists)):
        if here != there:
            ours, theirs = ("absent" if name is None else repr(name) for name in (here, there))
            return f"class {index} is {ours} in the one, {theirs} in the other"
    if all(metadata.get("thing_dataset_id_to_contiguous_id") is not None for metadata in (first, other)):
        for index in sorted(set(thing_ids(first)) ^ set(thing_ids(other))):
            ours, theirs = ("a thing" if index in thing_ids(m) else "stuff" for m in (first, other))
            name = first.stuff_classes[index]
            return f"class {index} ({name}) is {ours} in the one, {theirs} in the other"
    return None


def _require_registered(name: str) -> None:
    known = DatasetCatalog.list()
    if name in known:
        return
    near = difflib.get_close_matches(name, sorted(known), n=3)
    guess = f"did you mean {' or '.join(near)}? Otherwise " if near else ""
    own = [key for key in known if key not in BUILTIN_DATASETS or key.startswith("ade20k_")]
    raise InputError(
        f"unknown data set {name!r}: {guess}register your own under DATASETS.COCO_PANOPTIC; "
        f"known, besides detectron2's: {', '.join(sorted(own))}"
    )
