"""Context accuracy: of the things that look alike, how many get the class that only their context tells.

A data set declares its pairs of such classes in a file beside its panoptic JSON: `ambiguous_NAME.json` beside
`panoptic_NAME.json`, with "pairs", a list of {"first", "second"} (class names). The toy scenes have one.

A thing is found when an instance covers it with an IoU above 0.5, whatever the instance's class; the one with
the highest score answers for it. Instances, not the panoptic map: a model that cannot tell two classes gives
each of them half of the probability, and the map's threshold would leave out exactly the things in question.

Shapes: H×W the image, n instances, P pairs.
"""

import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from mask_former.data.segments import require_same_size
from mask_former.errors import InputError
from mask_former.evaluation.ground_truth import GroundTruth
from mask_former.evaluation.panoptic_quality import MATCH_IOU
from mask_former.evaluation.tables import summary_table

logger = logging.getLogger(__name__)

PANOPTIC, AMBIGUOUS = "panoptic", "ambiguous"  # how the names of the two files begin


class Pair(NamedTuple):
    """Two contiguous classes that only context tells apart."""

    first: int
    second: int


class Counts(NamedTuple):
    """Things of the classes of the pairs, int64 P×2 each: first and second class."""

    things: np.ndarray
    found: np.ndarray
    in_pair: np.ndarray  # found, and given one of the pair's two classes
    right: np.ndarray

    @classmethod
    def zeros(cls, pairs: int) -> "Counts":
        return cls(*(np.zeros((pairs, 2), np.int64) for _ in cls._fields))

    def measures(self) -> dict[str, float]:
        """Accuracy and chance over things found, pairwise accuracy, recall; 0..100, nan over nothing.

        Chance is what the best answer that looks at nothing but the pair scores on the same things: each
        pair's more frequent class. Pairwise accuracy leaves out what was given a third class: that is a
        mistake about looks, not about context.
        """
        things, found = int(self.things.sum()), int(self.found.sum())
        right = int(self.right.sum())
        return {
            "accuracy": _percent(right, found),
            "pairwise": _percent(right, int(self.in_pair.sum())),
            "chance": _percent(int(self.found.max(axis=1).sum()), found),
            "recall": _percent(found, things),
        }


def _percent(part: int, whole: int) -> float:
    return 100 * part / whole if whole else float("nan")


def declared_pairs(metadata: Metadata) -> list[Pair]:
    """The data set's pairs; empty when it declares none. InputError names a file that cannot be used."""
    panoptic = Path(metadata.get("panoptic_json") or "")
    file = panoptic.with_name(panoptic.name.replace(PANOPTIC, AMBIGUOUS, 1)) if panoptic.name else panoptic
    if not panoptic.name.startswith(PANOPTIC) or not file.is_file():
        return []
    try:
        names = [(pair["first"], pair["second"]) for pair in json.loads(file.read_bytes())["pairs"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{file}: needs "pairs", a list of {{"first": CLASS, "second": CLASS}}; mend it, or delete it'
        ) from error
    classes = list(metadata.stuff_classes)
    unknown = [name for pair in names for name in pair if name not in classes]
    if unknown:
        raise InputError(f"{file}: {unknown[0]!r} is no class of {panoptic.name}; correct the name")
    return [Pair(*map(classes.index, pair)) for pair in names]


def answers(
    ids: np.ndarray, segments: Sequence[Mapping[str, Any]], instances: Instances
) -> dict[int, int | None]:
    """Id of each given ground-truth segment -> the class that answers for it, None where it is not found.

    `ids` H×W; `instances` with `pred_masks` bool n×H×W, `scores`, `pred_classes`. One without a class.
    """
    masks = instances.pred_masks.cpu().numpy()
    areas = masks.sum(axis=(1, 2))
    scores, classes = instances.scores.cpu().numpy(), instances.pred_classes.cpu().numpy()
    found: dict[int, int | None] = {}
    for segment in segments:
        thing = ids == segment["id"]
        both = masks[:, thing].sum(axis=1)
        candidates = np.flatnonzero(both > MATCH_IOU * (areas + thing.sum() - both))
        best = candidates[np.argmax(scores[candidates])] if len(candidates) else None
        found[segment["id"]] = None if best is None else int(classes[best])
    return found


class ContextEvaluator(DatasetEvaluator):
    """Context accuracy, for models that return `instances`; needs panoptic ground truth."""

    def __init__(self, ground_truth: GroundTruth, pairs: Sequence[Pair]) -> None:
        self.ground_truth, self.pairs = ground_truth, list(pairs)
        self._place = {c: (p, side) for p, pair in enumerate(self.pairs) for side, c in enumerate(pair)}
        self.reset()

    def reset(self) -> None:
        self.counts = Counts.zeros(len(self.pairs))

    def process(self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]) -> None:
        """Count a batch: inputs with `file_name`, outputs with `instances`."""
        for sample, output in zip(inputs, outputs, strict=True):
            record = self.ground_truth.record(sample)
            ids, segments = self.ground_truth.panoptic(record)
            size = tuple(output["instances"].image_size)
            require_same_size(ids.shape, size, record["pan_seg_file_name"], record["file_name"])
            wanted = [s for s in segments if s["category_id"] in self._place and not s.get("iscrowd", 0)]
            answer = answers(ids, wanted, output["instances"])
            for segment in wanted:
                place = self._place[segment["category_id"]]
                self.counts.things[place] += 1
                self.counts.found[place] += answer[segment["id"]] is not None
                self.counts.in_pair[place] += answer[segment["id"]] in self.pairs[place[0]]
                self.counts.right[place] += answer[segment["id"]] == segment["category_id"]

    def evaluate(self) -> OrderedDict[str, dict[str, float]] | None:
        """{"context": {"accuracy", "pairwise", "chance", "recall", and each as "accuracy_FIRST_SECOND"}}.

        Called by all processes; those other than the main one get None.
        """
        comm.synchronize()
        gathered: list[Counts] = comm.gather(self.counts)
        if not comm.is_main_process():
            return None
        total = Counts(*(np.sum(parts, axis=0) for parts in zip(*gathered, strict=True)))
        rows = {"all": total.measures()}
        for index, pair in enumerate(self.pairs):
            name = "_".join(self.ground_truth.class_names[c] for c in pair)
            rows[name] = Counts(*(part[index : index + 1] for part in total)).measures()
        logger.info(
            "things that only context tells, %s: %d, %d of them found\n%s",
            self.ground_truth.name,
            total.things.sum(),
            total.found.sum(),
            summary_table(rows),
        )
        result = dict(rows.pop("all"))
        result |= {f"{key}_{name}": value for name, row in rows.items() for key, value in row.items()}
        return OrderedDict(context=result)
