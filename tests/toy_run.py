"""Training runs small enough for tests: a few rendered scenes and the toy configuration made tinier."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.logger import setup_logger

from mask_former.data.toy_scenes import write_toy_scenes
from mask_former.errors import run_cli
from tools import train_net

CONFIG = Path(__file__).resolve().parent.parent / "configs/toy/maskformer_tiny.yaml"
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": "32",
    "MODEL.SEM_SEG_HEAD.MASK_DIM": "32",
    "MODEL.MASK_FORMER.HIDDEN_DIM": "32",
    "MODEL.MASK_FORMER.DEC_LAYERS": "2",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": "12",
    "INPUT.MIN_SIZE_TRAIN": "(64,)",
    "INPUT.MIN_SIZE_TEST": "64",
    "SOLVER.IMS_PER_BATCH": "2",
    "SOLVER.MAX_ITER": "4",
    "SOLVER.CHECKPOINT_PERIOD": "2",
    "DATALOADER.NUM_WORKERS": "0",
}


def render(root: Path) -> Path:
    """Four training and two validation scenes of 64 pixels under `root`/toy; returns `root`."""
    write_toy_scenes(root / "toy", num_train=4, num_val=2, size=64, seed=0, workers=1)
    return root


def forget_datasets() -> None:
    """Take the toy data sets out of detectron2's catalogs, so that the next run may register other paths."""
    for name in ("toy_train", "toy_val"):
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def forget_loggers() -> None:
    """Let the next run set its loggers up anew: the old ones write to files and streams of tests that are
    over.
    """
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "mask_former", "pisr_maskformer", "tools"):
        logging.getLogger(name).handlers.clear()


def arguments(output: Path, *flags: str, config: Path = CONFIG, **overrides: Any) -> list[str]:
    """Command line of tools/train_net.py; `overrides` are keys with "__" for the dots."""
    options = TINY | {"OUTPUT_DIR": str(output)}
    options |= {key.replace("__", "."): str(value) for key, value in overrides.items()}
    pairs = [text for pair in options.items() for text in pair]
    return ["--config-file", str(config), *flags, *pairs]


def train(data: Path, command: Sequence[str]) -> Any:
    """What `train_net.main` returns for a command line, with DETECTRON2_DATASETS at `data`."""
    forget_datasets()
    forget_loggers()
    with mock.patch.dict(os.environ, {"DETECTRON2_DATASETS": str(data)}):
        return train_net.main(train_net.parser().parse_args(command))


def exit_code(data: Path, command: Sequence[str]) -> int:
    """Exit code of the tool for a command line, as run_cli gives it."""
    return run_cli(lambda: train(data, command) and None)
