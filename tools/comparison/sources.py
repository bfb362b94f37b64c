"""Where the predictions of one side come from: a model that is run, or a folder of saved ones.

H×W the image, C classes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances

from mask_former.data.catalog import panoptic_metadata
from mask_former.data.coco_panoptic import load_coco_panoptic
from mask_former.data.id_map import read_id_map, unique_ids
from mask_former.data.panoptic_json import read_categories
from mask_former.errors import InputError
from mask_former.evaluation.predictions import JSON_FILE, PNG_FOLDER
from mask_former.prediction import Predictor, class_metadata, panoptic_map
from pisr_maskformer.visualization.differences import PanopticMap
from pisr_maskformer.visualization.observation import Observation, has_pisr, observe
from tools.comparison.inputs import Item, file_identity
from tools.project import project_config

RUN_FILE, CONFIG_FILE = "run.json", "config.yaml"  # of a run's folder


class Prediction(NamedTuple):
    """One side's answer for one image; None where it does not say."""

    panoptic: PanopticMap
    classes: np.ndarray | None = None  # H×W, from the semantic scores
    instances: Instances | None = None
    observation: Observation | None = None  # of a model with PISR


class Source(Protocol):
    """One side of the comparison."""

    title: str
    metadata: Metadata
    has_semantic: bool  # gives `classes`
    has_instances: bool
    run: Path | None  # the folder of the run it comes from

    def identity(self) -> list[str]:
        """What the predictions depend on, in words that change when it changes."""

    def described(self) -> str:
        """What the predictions are, in words."""

    def config(self) -> str | None:
        """The configuration as YAML, where one is known."""

    def predict(self, item: Item, rgb: np.ndarray) -> Prediction:
        """InputError names an image for which there is no prediction."""


class ModelSource:
    """A configuration and a checkpoint. The model is built at the first image: a finished run needs none."""

    def __init__(self, cfg: CfgNode, weights: str | Path, title: str) -> None:
        self.cfg, self.weights, self.title = cfg, Path(weights), title
        if not self.weights.is_file():
            raise InputError(f"{weights}: no such checkpoint; name a file such as output/run/model_final.pth")
        self.metadata = class_metadata(cfg)
        self.has_semantic = bool(cfg.MODEL.MASK_FORMER.TEST.SEMANTIC_ON)
        self.has_instances = bool(cfg.MODEL.MASK_FORMER.TEST.INSTANCE_ON)
        self.run = run_folder(self.weights.parent, above=0)
        self._predictor: Predictor | None = None

    def identity(self) -> list[str]:
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = cfg.OUTPUT_DIR = ""  # another machine may go on
        return [hashlib.sha256(cfg.dump().encode()).hexdigest()[:16], *file_identity(self.weights)]

    def described(self) -> str:
        return f"of {self.weights}"

    def config(self) -> str | None:
        return self.cfg.dump()

    def predict(self, item: Item, rgb: np.ndarray) -> Prediction:
        predictor = self._predictor = self._predictor or Predictor(self.cfg, self.weights)
        sample = predictor.mapper.from_image(rgb)
        observation = observe(predictor.model, sample, called=f"the model {self.weights}")
        result = observation.result
        ids, segments = panoptic_map(dict(result))
        return Prediction(
            PanopticMap(ids, segments),
            classes=result["sem_seg"].argmax(dim=0).cpu().numpy() if "sem_seg" in result else None,
            instances=result["instances"].to("cpu") if "instances" in result else None,
            observation=observation if has_pisr(predictor.model) else None,
        )


class SavedSource:
    """Predictions in COCO's panoptic format, as tools/predict.py and TEST.KEEP_PREDICTIONS leave them."""

    has_semantic = has_instances = False

    def __init__(self, folder: str | Path, title: str) -> None:
        self.folder, self.title = Path(folder), title
        if not (self.folder / JSON_FILE).is_file():
            raise InputError(
                f"{folder}: holds no {JSON_FILE}; name a folder that tools/predict.py wrote, or a "
                "configuration and its weights"
            )
        self.json_file = self.folder / JSON_FILE
        self.metadata = Metadata(**panoptic_metadata(read_categories(self.json_file)))
        self.run = run_folder(self.folder, above=3)
        records = load_coco_panoptic(self.folder, self.json_file, self.folder / PNG_FOLDER)
        self._of_id = {str(record["image_id"]): record for record in records}
        self._of_file = {record["file_name"]: record for record in records}
        names = Counter(Path(record["file_name"]).name for record in records)
        self._of_name = {
            Path(record["file_name"]).name: record
            for record in records
            if names[Path(record["file_name"]).name] == 1
        }

    def identity(self) -> list[str]:
        return file_identity(self.json_file)

    def described(self) -> str:
        return f"saved in {self.folder}"

    def config(self) -> str | None:
        file = self.run / CONFIG_FILE if self.run else None
        return file.read_text(errors="replace") if file and file.is_file() else None

    def predict(self, item: Item, rgb: np.ndarray) -> Prediction:
        record = self._record(item)
        path = record["pan_seg_file_name"]
        ids, segments = read_id_map(path), record["segments_info"]
        if ids.shape != rgb.shape[:2]:
            sizes = [f"{width}×{height}" for height, width in (ids.shape, rgb.shape[:2])]
            raise InputError(f"{path}: is {sizes[0]} pixels, but {item.file} is {sizes[1]}; predict it again")
        present = set(unique_ids(ids)[0].tolist())
        return Prediction(PanopticMap(ids, [segment for segment in segments if segment["id"] in present]))

    def _record(self, item: Item) -> dict[str, Any]:
        """By path, then by image id and file name, then by a file name that no other prediction or image has.

        An id alone says little: tools/predict.py numbers nothing, it calls 10.jpg "10".
        """
        found = self._of_file.get(str(self.folder / item.file))
        if found is None and item.record is not None:
            found = self._of_id.get(str(item.record.get("image_id", "")))
            if found is not None and Path(found["file_name"]).name != item.file.name:
                found = None
        if found is None and item.lone:
            found = self._of_name.get(item.file.name)
        if found is None:
            raise InputError(
                f"{item.file}: {self.json_file} has no prediction of it; predict it or leave it out"
            )
        return found


def open_source(given: Sequence[str], title: str, overrides: Sequence[str]) -> ModelSource | SavedSource:
    """From the values of an option: CONFIG WEIGHTS, or FOLDER; InputError for anything else."""
    if len(given) == 1:
        return SavedSource(given[0], title)
    if len(given) == 2:
        return ModelSource(project_config(given[0], overrides), given[1], title)
    raise InputError(
        f"--{title.lower()} takes CONFIG WEIGHTS, or one FOLDER of saved predictions, not {len(given)} values"
    )


def run_folder(start: Path, above: int) -> Path | None:
    """The nearest folder that tells of a training run: `start`, or one of so many above it."""
    for folder in (start, *list(start.resolve().parents)[:above]):
        if (folder / RUN_FILE).is_file():
            return folder
    return None
