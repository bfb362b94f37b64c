"""The tiny MaskFormer of the tests with PISR, built from the project's own configuration files."""

from pathlib import Path

import torch
from detectron2.modeling import build_model

import pisr_maskformer.hosts.maskformer  # noqa: F401  (registers the predictor and the criterion)
from mask_former.config import load_config
from pisr_maskformer import add_pisr_config
from tests.tiny import DATASET, PLAIN, register_dataset, sample

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BASELINE = CONFIGS / "ade20k" / "maskformer_r50.yaml"


def overrides(values):
    return [part for pair in values.items() for part in pair]


def tiny_pisr(changes=None, path=None, seed=0):
    """The tiny model of the other tests with PISR, or the model of a configuration file at that size."""
    register_dataset()
    small = PLAIN | {
        "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 1,
        "DATASETS.TEST": (DATASET,),
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    }
    path = path or CONFIGS / "ade20k" / "maskformer_r50_pisr.yaml"
    cfg = load_config(path, overrides({**small, **(changes or {})}), extend=[add_pisr_config])
    torch.manual_seed(seed)
    return build_model(cfg)


def batch():
    """Two images of different sizes, the first without any ground truth."""
    return [sample(1, 64, 96, segments=0), sample(2, 96, 70, segments=3)]


def wake(model, std=0.05):
    """Give the zero-initialised outputs values, as after some training."""
    pisr = model.sem_seg_head.predictor.pisr
    for path in (pisr.pixel_feedback, pisr.query_feedback):
        if path is not None:
            torch.nn.init.normal_(path.project.weight, std=std)
