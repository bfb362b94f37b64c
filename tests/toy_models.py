"""Untrained toy models of both kinds on disk, for tests of the tools that look at models."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import torch

from mask_former.prediction import build_blank_model
from tests.toy_run import CONFIG, TINY, forget_datasets, forget_loggers, render
from tools.project import project_config

PISR_CONFIG = CONFIG.with_name("maskformer_tiny_pisr.yaml")
OPTIONS = TINY | {
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": "0.0",
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": "0.0",
}
OPTS = [part for pair in OPTIONS.items() for part in pair]


@contextmanager
def toy_models(folder: Path) -> Iterator[Path]:
    """Rendered scenes under `folder`/data, and weights of both models; gives the folder.

    The one with PISR has normal values where training starts from zero, so that its stages differ.
    """
    forget_datasets()
    with mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(render(folder / "data"))):
        for seed, config in enumerate((CONFIG, PISR_CONFIG)):
            torch.manual_seed(seed)
            model = build_blank_model(project_config(config, OPTS))
            if config == PISR_CONFIG:
                feedback = model.sem_seg_head.predictor.pisr.query_feedback
                torch.nn.init.normal_(feedback.project.weight, std=0.2)
            torch.save({"model": model.state_dict()}, weights_of(folder, config))
        yield folder
    forget_datasets()
    forget_loggers()


def weights_of(folder: Path, config: Path) -> Path:
    """The weights that `toy_models` wrote for a configuration."""
    return folder / f"{config.stem}.pth"
