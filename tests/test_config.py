"""Configuration: keys and defaults, what the published configurations say, and overrides."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode, get_cfg

from mask_former import add_mask_former_config
from mask_former.config import load_config
from mask_former.errors import InputError
from pisr_maskformer.config import add_pisr_config

CONFIGS = Path(__file__).parents[1] / "configs"

ADE20K = CONFIGS / "ade20k"

ALL_CONFIGS = sorted(path.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("*.yaml"))

# Official keys and defaults, which official files and checkpoints rely on.
OFFICIAL_DEFAULTS = {
    "MODEL.MASK_FORMER.DEEP_SUPERVISION": True,
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.1,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 20.0,
    "MODEL.MASK_FORMER.NHEADS": 8,
    "MODEL.MASK_FORMER.DROPOUT": 0.1,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 2048,
    "MODEL.MASK_FORMER.ENC_LAYERS": 0,
    "MODEL.MASK_FORMER.DEC_LAYERS": 6,
    "MODEL.MASK_FORMER.PRE_NORM": False,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 256,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ": False,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 32,
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE": False,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 256,
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 0,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.BACKBONE_MULTIPLIER": 0.1,
    "SOLVER.WEIGHT_DECAY_EMBED": 0.0,
    "SOLVER.POLY_LR_POWER": 0.9,
    "SOLVER.POLY_LR_CONSTANT_ENDING": 0.0,
    "INPUT.COLOR_AUG_SSD": False,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
    "INPUT.SIZE_DIVISIBILITY": -1,
}

OUR_DEFAULTS = {
    "MODEL.MASK_FORMER.PREDICTOR_NAME": "TransformerPredictor",
    "MODEL.MASK_FORMER.CRITERION_NAME": "SetCriterion",
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.TIMM.NAME": "",
    "MODEL.TIMM.WEIGHTS": "",
    "SOLVER.ADAM_EPS": 1e-8,
    "SOLVER.AMP.DTYPE": "float16",
    "TEST.KEEP_PREDICTIONS": False,
    "TEST.BEST_METRIC": "panoptic_seg/PQ",
}

# What every ADE20K model has in common, and what the panoptic and semantic ones differ in.
ADE20K_VALUES = {
    "MODEL.META_ARCHITECTURE": "MaskFormer",
    "MODEL.PIXEL_MEAN": [123.675, 116.28, 103.53],
    "MODEL.PIXEL_STD": [58.395, 57.12, 57.375],
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STRIDE_IN_1X1": False,
    "MODEL.RESNETS.NORM": "FrozenBN",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 150,
    "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": 255,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 256,
    "MODEL.SEM_SEG_HEAD.NORM": "GN",
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 100,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.OPTIMIZER": "ADAMW",
    "SOLVER.WEIGHT_DECAY": 0.0001,
    "SOLVER.WEIGHT_DECAY_NORM": 0.0,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupPolyLR",
    "SOLVER.WARMUP_ITERS": 0,
    "SOLVER.WARMUP_FACTOR": 1.0,
    "SOLVER.CLIP_GRADIENTS.ENABLED": True,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": "full_model",
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": 0.01,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": 2.0,
    "INPUT.FORMAT": "RGB",
    "INPUT.COLOR_AUG_SSD": True,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
    "INPUT.CROP.ENABLED": True,
    "INPUT.CROP.TYPE": "absolute",
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 1.0,
}

PANOPTIC_VALUES = ADE20K_VALUES | {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "TransformerEncoderPixelDecoder",
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS": 6,
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "transformer_encoder",
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": True,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.7,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.8,
    "DATASETS.TRAIN": ("ade20k_panoptic_train",),
    "DATASETS.TEST": ("ade20k_panoptic_val",),
    "SOLVER.MAX_ITER": 720_000,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_panoptic",
    "INPUT.MIN_SIZE_TRAIN": [64 * k for k in range(5, 21)],
    "INPUT.MAX_SIZE_TRAIN": 2560,
    "INPUT.MIN_SIZE_TEST": 640,
    "INPUT.MAX_SIZE_TEST": 2560,
    "INPUT.CROP.SIZE": [640, 640],
    "INPUT.SIZE_DIVISIBILITY": 640,
    "TEST.EVAL_PERIOD": 0,
}

SEMANTIC_VALUES = ADE20K_VALUES | {
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": "BasePixelDecoder",
    "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE": "res5",
    "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": False,
    "DATASETS.TRAIN": ("ade20k_sem_seg_train",),
    "DATASETS.TEST": ("ade20k_sem_seg_val",),
    "SOLVER.BASE_LR": 0.0001,
    "SOLVER.MAX_ITER": 160_000,
    "INPUT.DATASET_MAPPER_NAME": "mask_former_semantic",
    "INPUT.MIN_SIZE_TRAIN": [512 * k // 10 for k in range(5, 21)],
    "INPUT.MAX_SIZE_TRAIN": 2048,
    "INPUT.MIN_SIZE_TEST": 512,
    "INPUT.MAX_SIZE_TEST": 2048,
    "INPUT.CROP.SIZE": [512, 512],
    "INPUT.SIZE_DIVISIBILITY": 512,
    "TEST.EVAL_PERIOD": 5000,
}

PANOPTIC_CONFIGS = {  # file to depth and learning rate
    "maskformer_r50.yaml": (50, 5e-4),
    "maskformer_r50_lr1e-4.yaml": (50, 1e-4),
    "maskformer_r101.yaml": (101, 5e-4),
    "maskformer_r101_lr1e-4.yaml": (101, 1e-4),
}


def flat(cfg: CfgNode, above: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted key."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from flat(value, f"{above}{key}.")
        else:
            yield above + key, value


def values_of(cfg: CfgNode, expected: dict[str, Any]) -> dict[str, Any]:
    """The values of the keys of `expected`, tuples as lists where it has a list."""
    present = dict(flat(cfg))
    return {
        key: list(present[key]) if isinstance(value, list) else present[key]
        for key, value in expected.items()
    }


def refused(path: Path, overrides: tuple[str, ...] = ()) -> str:
    """The message of the InputError, which is one line of a readable length."""
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    return message


def test_official_keys_and_defaults() -> None:
    cfg = get_cfg()
    add_mask_former_config(cfg)
    assert values_of(cfg, OFFICIAL_DEFAULTS) == OFFICIAL_DEFAULTS
    assert cfg.INPUT.DATASET_MAPPER_NAME in ("mask_former_semantic", "mask_former_panoptic", "detr_panoptic")


def test_our_own_keys_and_defaults() -> None:
    cfg = get_cfg()
    add_mask_former_config(cfg)
    assert values_of(cfg, OUR_DEFAULTS) == OUR_DEFAULTS
    assert cfg.DATASETS.COCO_PANOPTIC.is_new_allowed()


def test_detectron2s_own_defaults_stay() -> None:
    plain = dict(flat(get_cfg()))
    extended = get_cfg()
    add_mask_former_config(extended)
    changed = {key for key, value in flat(extended) if key in plain and plain[key] != value}
    assert changed == set()


@pytest.mark.parametrize("name", ALL_CONFIGS)
def test_every_config_loads(name: str) -> None:
    assert load_config(CONFIGS / name, extend=[add_pisr_config]).VERSION == 2


@pytest.mark.parametrize("name", PANOPTIC_CONFIGS)
def test_ade20k_panoptic_values(name: str) -> None:
    cfg = load_config(ADE20K / name)
    depth, lr = PANOPTIC_CONFIGS[name]
    expected = PANOPTIC_VALUES | {"MODEL.RESNETS.DEPTH": depth, "SOLVER.BASE_LR": lr}
    assert values_of(cfg, expected) == expected


def test_ade20k_semantic_values() -> None:
    assert values_of(load_config(ADE20K / "maskformer_r50_semantic.yaml"), SEMANTIC_VALUES) == SEMANTIC_VALUES


@pytest.mark.parametrize("name", ["maskformer_r50", "maskformer_r101"])
def test_learning_rate_twins_differ_in_nothing_else(name: str) -> None:
    paper = dict(flat(load_config(ADE20K / f"{name}.yaml")))
    official = dict(flat(load_config(ADE20K / f"{name}_lr1e-4.yaml")))
    assert (paper.pop("SOLVER.BASE_LR"), official.pop("SOLVER.BASE_LR")) == (5e-4, 1e-4)
    assert paper.pop("OUTPUT_DIR") != official.pop("OUTPUT_DIR")  # no run resumes its twin
    assert paper == official


def test_code_in_an_override_stays_text(tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    cfg = load_config(ADE20K / "base.yaml", ["OUTPUT_DIR", f"__import__('os').mkdir({str(sentinel)!r})"])
    assert cfg.OUTPUT_DIR.startswith("__import__") and not sentinel.exists()


def test_overrides_win_over_the_file() -> None:
    cfg = load_config(
        ADE20K / "maskformer_r50.yaml", ["SOLVER.BASE_LR", "3e-4", "INPUT.MIN_SIZE_TRAIN", "(64, 96)"]
    )
    assert cfg.SOLVER.BASE_LR == 3e-4 and cfg.INPUT.MIN_SIZE_TRAIN == (64, 96)


def test_own_data_sets_may_have_any_name(tmp_path: Path) -> None:
    text = "DATASETS: {COCO_PANOPTIC: {mine_train: {IMAGES: i, JSON: p.json, PNGS: p}}}\n"
    (tmp_path / "a.yaml").write_text(text)
    cfg = load_config(tmp_path / "a.yaml")
    assert cfg.DATASETS.COCO_PANOPTIC.mine_train.JSON == "p.json"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("MODEL.MASK_FORMER.NHEAD", "4"), "did you mean MODEL.MASK_FORMER.NHEADS"),
        (("SEED", "x"), "command line, SEED: Type mismatch"),
        (("MODEL", "1"), "command line, MODEL"),
        (
            ("SOLVER.BACKBONE_MULTIPLIER", "-1.0"),
            "SOLVER.BACKBONE_MULTIPLIER is -1.0; it must be a number of 0",
        ),
        (("SOLVER.ADAM_EPS", "0.0"), "SOLVER.ADAM_EPS is 0.0; it must be positive"),
        (("SEED.X", "1"), "command line, SEED.X"),
        (("SEED", "1", "SOLVER.BASE_LR"), "'SOLVER.BASE_LR' has no value"),
    ],
)
def test_bad_overrides(overrides: tuple[str, ...], says: str) -> None:
    assert says in refused(ADE20K / "base.yaml", overrides)
