"""Configuration files that cannot be read, keys that do not exist, values that mean nothing."""

import shutil
from pathlib import Path
from typing import Any

from tests.malformed.case import Case, Place, command, resume
from tests.toy_run import CONFIG

FILE = "{files}/config.yaml"
PISR = CONFIG.parent / "maskformer_tiny_pisr.yaml"


def value(name: str, *says: str, config: Path = CONFIG, **overrides: Any) -> Case:
    """KEY VALUE pairs of the command line; the key, with its dots, must stand in the line."""
    key = next(reversed(overrides)).replace("__", ".")
    return Case(name, lambda place: resume(place, config=config, **overrides), (key, *says))


def pisr(key: str, *valid: str) -> Case:
    """A variant of PISR that does not exist."""
    listed = f"use one of: {', '.join(valid)}"
    return value(f"PISR: unknown {key.lower()}", listed, config=PISR, **{f"MODEL__PISR__{key}": "best"})


def file(name: str, content: str | bytes, *says: str) -> Case:
    """A configuration file with this content; {files} and {base} stand for paths."""

    def write(place: Place) -> list[str]:
        path = place.files / "config.yaml"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content.replace("{files}", str(place.files)).replace("{base}", str(CONFIG)))
        return resume(place, config=path)

    return Case(name, write, (FILE, *says))


def own_set(name: str, paths: str) -> Case:
    """A data set of the configuration's own."""
    text = f"_BASE_: {CONFIG}\nDATASETS: {{COCO_PANOPTIC: {{mine: {{{paths}}}}}}}\n"

    def write(place: Place) -> list[str]:
        (place.files / "config.yaml").write_text(text)
        return resume(place, config=place.files / "config.yaml")

    return Case(name, write, ("DATASETS.COCO_PANOPTIC.mine", "must give paths for IMAGES, JSON, PNGS"))


def missing(place: Place) -> list[str]:
    return resume(place, config=place.files / "none.yaml")


def folder(place: Place) -> list[str]:
    return resume(place, config=place.files)


def base_of_each_other(place: Place) -> list[str]:
    for one, other in (("config", "other"), ("other", "config")):
        (place.files / f"{one}.yaml").write_text(f"_BASE_: {other}.yaml\n")
    return resume(place, config=place.files / "config.yaml")


def base_missing(place: Place) -> list[str]:
    (place.files / "config.yaml").write_text("_BASE_: gone.yaml\n")
    return resume(place, config=place.files / "config.yaml")


def output_below_a_file(place: Place) -> list[str]:
    (place.files / "file").write_text("in the way")
    return command(place.files / "file/run")


def without_value(place: Place) -> list[str]:
    return [*resume(place), "SOLVER.BASE_LR"]


READ = "cannot read configuration"
NOT_READ = "not a configuration we can read"
MEND = "correct the file"
TYPE = "check the value's type"
CODE = "!!python/object/apply:os.system ['touch {files}/executed']"
EVAL = "!!python/object/apply:eval [\"open('{files}/executed', 'w')\"]"

FILES = [
    Case("configuration missing", missing, (READ, "{files}/none.yaml", "No such file", "check the path")),
    Case("configuration is a folder", folder, (READ, "{files}", "Is a directory", "check the path")),
    Case("two files are each other's base", base_of_each_other, (FILE, "leads back", "take it out")),
    file("configuration without content", "", "must be a mapping of keys"),
    file("configuration is a list", "- SEED\n- 1\n", "must be a mapping of keys, found list"),
    file("configuration in binary", bytes(range(256)), NOT_READ, MEND),
    file("configuration in Latin-1", b"OUTPUT_DIR: \xe9\n", NOT_READ, "utf-8", MEND),
    file("configuration with tabs", "SOLVER:\n\tBASE_LR: 0.1\n", "line 2", NOT_READ, MEND),
    file("bracket left open", "INPUT:\n  MIN_SIZE_TRAIN: [64\n", "line 3", NOT_READ, MEND),
    file("key twice", "SEED: 1\nSEED: 2\n", "line 2", "the key SEED stands twice", MEND),
    Case("base missing", base_missing, (READ, "{files}/gone.yaml", "No such file", "check the path")),
    file("base is a number", "_BASE_: 5\n", "_BASE_ must be a path or a list of paths, found 5"),
    file("file is its own base", "_BASE_: config.yaml\n", "leads back to the file itself", "take it out"),
    file("endless value", "_BASE_: {base}\nSEED: &a [*a]\n", "SEED", TYPE),
    file("code in a tag", f"_BASE_: {{base}}\nSEED: {CODE}\n", "line 2", NOT_READ, "is data", MEND),
    file("code in a size list", f"INPUT: {{MIN_SIZE_TRAIN: {EVAL}}}\n", "line 1", NOT_READ, "is data", MEND),
    file("misspelt key in a file", "SOLVER:\n  BASE_LRR: 0.1\n", "SOLVER.BASE_LRR", "did you mean"),
    file("key that is a number", "_BASE_: {base}\n5: 1\n", "unknown configuration key 5"),
    file("value in the place of a section", "SOLVER: fast\n", "SOLVER is a section", "such as SOLVER."),
    file("section in the place of a value", "_BASE_: {base}\nSEED: {a: 1}\n", "SEED", TYPE),
    own_set("data set with a misspelt path", "IMAGES: a, JSON: b, PNG: c"),
    own_set("data set with a number for a path", "IMAGES: a, JSON: b, PNGS: 5"),
    own_set("data set with a path left empty", "IMAGES: a, JSON: b, PNGS: ''"),
]

COMMAND_LINE = [
    Case(
        "no configuration",
        lambda place: ["OUTPUT_DIR", str(place.run)],
        ("--config-file is missing", "for a first try: --config-file configs/toy/maskformer_tiny.yaml"),
    ),
    Case(
        "output below a file",
        output_below_a_file,
        ("cannot write to {files}/file/run", "Not a directory", "choose another folder"),
    ),
    Case("override without a value", without_value, ("command line", "'SOLVER.BASE_LR' has no value")),
    value("misspelt key", "unknown configuration key", "did you mean SOLVER.BASE_LR", SOLVER__BASE_LRR=0.1),
    value("word for a number", TYPE, SOLVER__BASE_LR="fast"),
    value("whole number for a fraction", "a float has a point: 20.0", SOLVER__BASE_LR="1"),
    value("value for a section", "is a section", "such as SOLVER.", SOLVER="fast"),
    value("no learning rate", "is None", "must be a number of 0 or more", SOLVER__BASE_LR="None"),
    value("endless learning rate", "is inf", "must be a number of 0 or more", SOLVER__BASE_LR="1e400"),
    value("negative learning rate", "is -0.1", "must be a number of 0 or more", SOLVER__BASE_LR="-0.1"),
    value("no iterations", "is 0", "must be at least 1", SOLVER__MAX_ITER=0),
    value("empty batch", "is 0", "must be at least 1", SOLVER__IMS_PER_BATCH=0),
    value("negative period", "is -2", "must be a number of 0 or more", SOLVER__CHECKPOINT_PERIOD=-2),
    value("negative loss weight", "is -1.0", "0 or more", MODEL__MASK_FORMER__MASK_WEIGHT="-1.0"),
    value("dropout above 1", "is 2.0", "must be a number of 0..1", MODEL__MASK_FORMER__DROPOUT="2.0"),
    value("unknown optimiser", "use one of: ADAMW, SGD", SOLVER__OPTIMIZER="ADAMM"),
    value("unknown schedule", "use one of: WarmupPolyLR", SOLVER__LR_SCHEDULER_NAME="Cosine"),
    value("unknown warm-up", "use one of: linear, constant", SOLVER__WARMUP_METHOD="slow"),
    value("unknown clipping", "use one of: full_model", SOLVER__CLIP_GRADIENTS__CLIP_TYPE="all"),
    value(
        "unknown precision",
        "use one of: float16, bfloat16",
        SOLVER__AMP__ENABLED=True,
        SOLVER__AMP__DTYPE="half",
    ),
    value("unknown mapper", "mask_former_panoptic, detr_panoptic", INPUT__DATASET_MAPPER_NAME="panoptic"),
    value("test mapper for training", "mask_former_panoptic", INPUT__DATASET_MAPPER_NAME="test"),
    value("unknown flip", "one of horizontal, vertical, none", INPUT__RANDOM_FLIP="sideways"),
    value("unknown channel order", "must be RGB or BGR", INPUT__FORMAT="HSV"),
    value("unknown sampling", "use one of: choice, range", INPUT__MIN_SIZE_TRAIN_SAMPLING="all"),
    value("no size to train at", "is ()", "must list", INPUT__MIN_SIZE_TRAIN="()"),
    value("word for a size", "must list", INPUT__MIN_SIZE_TRAIN="('small',)"),
    value("no longest side", "is 0", "must be at least 1", INPUT__MAX_SIZE_TRAIN=0),
    value("unknown crop", "use one of: absolute,", INPUT__CROP__TYPE="round"),
    value("crop of one number", "is [5]", "two positive numbers", INPUT__CROP__SIZE="(5,)"),
    value("negative workers", "is -1", "0 or more", DATALOADER__NUM_WORKERS=-1),
    value("no training set", "is empty", DATASETS__TRAIN="()"),
    value("number for a data set", "is (5,)", "must list names", DATASETS__TRAIN="(5,)"),
    Case(
        "unknown training set",
        lambda place: resume(place, DATASETS__TRAIN="('toy_trian',)"),
        ("unknown data set 'toy_trian'", "did you mean toy_train", "DATASETS.COCO_PANOPTIC"),
    ),
    Case(
        "unknown test set",
        lambda place: resume(place, DATASETS__TEST="('toy_vall',)"),
        ("unknown data set 'toy_vall'", "did you mean toy_val"),
    ),
    Case(
        "no data set there",
        lambda place: shutil.rmtree(place.data / "toy"),
        ("{data}/toy", "no such", "$DETECTRON2_DATASETS"),
    ),
    value("seed too large", "is 4294967296", "less than 2**32", SEED=2**32),
    value("negative norm", "is -2.0", "must be positive", SOLVER__CLIP_GRADIENTS__NORM_TYPE="-2.0"),
    value("unknown sampler", "use one of: TrainingSampler", DATALOADER__SAMPLER_TRAIN="Random"),
    value("empty output folder", "is ''", "name a folder", OUTPUT_DIR="''"),
]

MODEL = [
    value("wrong number of classes", "is 11", "set it to 12", MODEL__SEM_SEG_HEAD__NUM_CLASSES=11),
    value("no classes", "is 0", "must be at least 1", MODEL__SEM_SEG_HEAD__NUM_CLASSES=0),
    value("no queries", "is 0", "must be at least 1", MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=0),
    value("no decoder layer", "is 0", "must be at least 1", MODEL__MASK_FORMER__DEC_LAYERS=0),
    value("no heads", "is 0", "must be at least 1", MODEL__MASK_FORMER__NHEADS=0),
    value("no width", "is 0", "must be at least 1", MODEL__MASK_FORMER__HIDDEN_DIM=0),
    value("heads that do not divide the width", "must be divisible by", MODEL__MASK_FORMER__NHEADS=5),
    value("groups that do not divide the width", "divisible by 32", MODEL__SEM_SEG_HEAD__CONVS_DIM=36),
    value("unknown norm", "use one of: ", "GN", MODEL__SEM_SEG_HEAD__NORM="XX"),
    value("unknown depth", "use one of: 18, 34, 50, 101, 152", MODEL__RESNETS__DEPTH=19),
    value("unknown feature", "res5", MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE="res9"),
    value(
        "unknown level", "choose from what the backbone gives", MODEL__SEM_SEG_HEAD__IN_FEATURES="['res9']"
    ),
    value("unknown output", "use only: stem, res2", MODEL__RESNETS__OUT_FEATURES="['res9']"),
    value("one colour channel", "is [1.0]", "three numbers", MODEL__PIXEL_MEAN="[1.0]"),
    value("no deviation", "three positive numbers", MODEL__PIXEL_STD="[0.0, 1.0, 1.0]"),
    value("unknown device", "is 'gpu'", "cuda", "cpu", MODEL__DEVICE="gpu"),
    value("unknown architecture", "no 'MaskFormr'", "MaskFormer", MODEL__META_ARCHITECTURE="MaskFormr"),
    value("unknown backbone", "no 'resnet'", "build_resnet_backbone", MODEL__BACKBONE__NAME="resnet"),
    value("unknown head", "no 'Head'", "MaskFormerHead", MODEL__SEM_SEG_HEAD__NAME="Head"),
    value(
        "unknown pixel decoder", "no 'FPN'", "BasePixelDecoder", MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME="FPN"
    ),
    value("unknown predictor", "no 'P'", "TransformerPredictor", MODEL__MASK_FORMER__PREDICTOR_NAME="P"),
    value("unknown criterion", "no 'C'", "SetCriterion", MODEL__MASK_FORMER__CRITERION_NAME="C"),
    pisr("REWEIGHTING", "explicit", "implicit", "separate", "none"),
    pisr("F1", "matmul", "cosine", "l2"),
    pisr("F2", "matmul", "cosine", "l2"),
    pisr("FEEDBACK", "pixel", "query", "both"),
    pisr("SUPPRESSION", "none", "soft", "binary"),
    pisr("SLOT_ORDER", "query", "score"),
    pisr("RELATION", "attention", "constant"),
    pisr("INITIAL_LOSS_SCOPE", "all", "prediction"),
    pisr("INFERENCE_STAGE", "final", "initial"),
    value("PISR: negative slots", "must not be negative", config=PISR, MODEL__PISR__NUM_INSTANCES=-1),
    Case(
        "PISR: one half of it",
        lambda place: resume(place, config=PISR, MODEL__MASK_FORMER__CRITERION_NAME="SetCriterion"),
        ("MODEL.MASK_FORMER", "does not go with CRITERION_NAME SetCriterion", "TwoStageSetCriterion"),
    ),
]

CASES = FILES + COMMAND_LINE + MODEL
