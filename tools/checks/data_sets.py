"""Which data sets lie under $DETECTRON2_DATASETS, and what to run for those that do not."""

import os
from pathlib import Path
from typing import NamedTuple

from tools.checks.finding import Finding

ADE20K_SOURCE = "python tools/prepare_ade20k.py --check says where to get it"
ADE20K_MADE = "python tools/prepare_ade20k.py makes it"
SPLITS = ("train", "val")


class DataSet(NamedTuple):
    """A data set, or a part of one that is made or fetched by itself; `parts` are paths under `folder`."""

    name: str
    folder: str
    parts: tuple[str, ...]
    mend: str


def _ade20k(name: str, folder: str, mend: str) -> DataSet:
    return DataSet(f"ADE20K {name}", f"ADEChallengeData2016/{folder}", ("training", "validation"), mend)


DATA_SETS = (
    _ade20k("images", "images", ADE20K_SOURCE),
    _ade20k("scenes", "annotations", ADE20K_SOURCE),
    _ade20k("instances", "annotations_instance", ADE20K_SOURCE),
    _ade20k("semantic", "annotations_detectron2", ADE20K_MADE),
    DataSet(
        "ADE20K panoptic",
        "ADEChallengeData2016",
        tuple(f"ade20k_panoptic_{split}{end}" for split in SPLITS for end in ("", ".json")),
        ADE20K_MADE,
    ),
    DataSet(
        "COCO panoptic",
        "coco",
        tuple(
            path
            for split in SPLITS
            for path in (
                f"{split}2017",
                f"annotations/panoptic_{split}2017",
                f"annotations/panoptic_{split}2017.json",
            )
        ),
        "images and panoptic annotations of 2017 from cocodataset.org, all archives unpacked",
    ),
    DataSet(
        "toy scenes",
        "toy",
        tuple(
            path
            for split in SPLITS
            for path in (split, f"annotations/panoptic_{split}", f"annotations/panoptic_{split}.json")
        ),
        "python tools/render_toy_scenes.py datasets/toy --train 400 --val 60 --size 128",
    ),
)


def datasets_root() -> Path:
    """As mask_former.data.catalog.datasets_root, which cannot be imported without detectron2."""
    return Path(os.environ.get("DETECTRON2_DATASETS", "datasets")).expanduser()


def check_data_sets(root: Path) -> list[Finding]:
    """What of each data set is there."""
    if not root.is_dir():
        mend = "set DETECTRON2_DATASETS to the folder of your data sets"
        return [Finding("data", "data sets", "none", f"no folder {root.absolute()}", mend)]
    findings = [Finding("data", "data sets", "ok", str(root.absolute()))]
    for data_set in DATA_SETS:
        absent = [part for part in data_set.parts if not (root / data_set.folder / part).exists()]
        if not absent:
            findings.append(Finding("data", data_set.name, "ok", data_set.folder))
        elif len(absent) == len(data_set.parts):
            findings.append(Finding("data", data_set.name, "none", "not there", data_set.mend))
        else:
            value = f"{data_set.folder} lacks {', '.join(absent)}"
            findings.append(Finding("data", data_set.name, "mend", value, data_set.mend))
    return findings
