"""Command lines of tools/predict.py that cannot work."""

from typing import Any

from tests.malformed.case import Case, Place
from tests.toy_run import CONFIG, TINY

MODEL = TINY | {"MODEL.BACKBONE.NAME": "TinyBackbone"}


def predict(place: Place, *extra: str, **changes: Any) -> list[str]:
    """Command line of tools/predict.py on the training images; `changes` by option without its dashes."""
    options = {
        "config-file": CONFIG,
        "weights": place.weights,
        "input": place.data / "toy/train",
        "output": place.files / "out",
        "device": "cpu",
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    pairs = [str(text) for option, value in options.items() for text in (f"--{option}", value)]
    return [*pairs, *[text for pair in MODEL.items() for text in pair], *extra]


def empty_folder(place: Place) -> list[str]:
    (place.files / "empty").mkdir()
    return predict(place, input=place.files / "empty")


def file_in_the_way(place: Place) -> list[str]:
    (place.files / "file").write_text("in the way")
    return predict(place, output=place.files / "file/out")


def file_for_overlays(place: Place) -> list[str]:
    (place.files / "out").mkdir()
    (place.files / "out/overlays").write_text("in the way")
    return predict(place)


def folder_for_json(place: Place) -> list[str]:
    (place.files / "out/panoptic.json").mkdir(parents=True)
    return predict(place)


def text_as_weights(place: Place) -> list[str]:
    (place.files / "weights.pth").write_text("404\n")
    return predict(place, weights=place.files / "weights.pth")


CASES = [
    Case(
        "predict: input missing",
        lambda place: predict(place, input=place.files / "none"),
        ("--input {files}/none", "no such file or folder"),
    ),
    Case("predict: empty folder", empty_folder, ("no pictures in {files}/empty", "looked for .jpg")),
    Case(
        "predict: output below a file",
        file_in_the_way,
        ("cannot write to {files}/file/out", "choose another"),
    ),
    Case(
        "predict: a file in the place of overlays",
        file_for_overlays,
        ("cannot write to {files}/out/overlays", "choose another folder"),
    ),
    Case(
        "predict: a folder in the place of the JSON",
        folder_for_json,
        ("{files}/out/panoptic.json", "it is a folder", "choose another --output"),
    ),
    Case(
        "predict: weights missing",
        lambda place: predict(place, weights=place.files / "none.pth"),
        ("no checkpoint at {files}/none.pth", "check"),
    ),
    Case(
        "predict: text as weights",
        text_as_weights,
        ("{files}/weights.pth", "is not a checkpoint", "download it again"),
    ),
    Case(
        "predict: weights of another width",
        lambda place: predict(place, "MODEL.SEM_SEG_HEAD.MASK_DIM", "64"),
        ("{run}/model_0000001.pth", "has shape", "use weights of the configured architecture"),
    ),
    Case(
        "predict: configuration missing",
        lambda place: predict(place, config_file=place.files / "none.yaml"),
        ("cannot read configuration {files}/none.yaml", "check the path"),
    ),
    Case(
        "predict: unknown device",
        lambda place: predict(place, device="abacus"),
        ("MODEL.DEVICE", "'abacus'", "cpu"),
    ),
    Case(
        "predict: unknown key",
        lambda place: predict(place, "MODEL.MASK_FORMER.NHEAD", "4"),
        ("command line", "unknown configuration key", "did you mean MODEL.MASK_FORMER.NHEADS"),
    ),
]
