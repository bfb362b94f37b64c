"""Files that hold no weights, other weights, damaged weights, or code."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.malformed.case import Case, Place, command

DICTIONARY = "use a state dictionary, bare or under 'model'"
AGAIN = "copy or download it again"
ARCHITECTURE = "use weights of the configured architecture"
CONFIGURATION = "use a checkpoint of this configuration"
Spoil = Callable[[Path, Place], Any]


class Code:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


def evaluation_of(place: Place, write: Spoil, suffix: str = ".pth", **overrides: Any) -> list[str]:
    """Command line that evaluates the weights that `write` leaves in a file."""
    path = place.files / f"weights{suffix}"
    write(path, place)
    return command(place.run, "--eval-only", MODEL__WEIGHTS=path, **overrides)


def case(name: str, write: Spoil, *says: str, suffix: str = ".pth", **overrides: Any) -> Case:
    return Case(
        name,
        lambda place: evaluation_of(place, write, suffix, **overrides),
        (f"{{files}}/weights{suffix}", *says),
    )


def content(change: Callable[[dict[str, Any]], Any]) -> Spoil:
    """The run's checkpoint as `change` gives it back."""

    def write(path: Path, place: Place) -> None:
        torch.save(change(torch.load(place.weights, weights_only=True)), path)

    return write


def tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    """Every weight as `change` gives it back."""
    return content(lambda c: {name: change(value) for name, value in c["model"].items()})


def only(part: str) -> Spoil:
    return content(lambda c: {name: value for name, value in c["model"].items() if name.startswith(part)})


def nine_classes(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """As from a model of nine classes and "no object"; everything else fits."""
    for name, value in checkpoint["model"].items():
        if "class_embed" in name or "empty_weight" in name:
            checkpoint["model"][name] = value[:10].clone()
    return checkpoint


def cut_to(share: float) -> Spoil:
    def write(path: Path, place: Place) -> None:
        whole = place.weights.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return write


def flip_bytes(path: Path, place: Place) -> None:
    """A hundred bytes in the middle, which are numbers of a tensor."""
    damaged = bytearray(place.weights.read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 100] = bytes(255 - byte for byte in damaged[middle : middle + 100])
    path.write_bytes(damaged)


def hold_code(path: Path, place: Place) -> None:
    torch.save({"model": {"a": torch.zeros(1)}, "more": Code(place.files / "executed")}, path)


def training_from(name: str) -> Callable[[Place], list[str]]:
    return lambda place: command(place.files / "new", MODEL__WEIGHTS=place.files / name)


def resume_without_checkpoint(place: Place) -> list[str]:
    return command(place.files / "none", "--eval-only", "--resume")


CASES = [
    case("weights missing", lambda path, place: None, "no checkpoint at", "check MODEL.WEIGHTS"),
    case("folder of weights", lambda path, place: path.mkdir(), "no checkpoint at", "check MODEL.WEIGHTS"),
    case("weights without bytes", lambda path, place: path.write_bytes(b""), "cut short", AGAIN),
    case("weights cut short", cut_to(0.5), "cut short", AGAIN),
    case("weights without their last byte", cut_to(0.99999), "cut short", AGAIN),
    case("weights with bytes flipped", flip_bytes, "is damaged: the checksum of", AGAIN),
    case(
        "text as weights", lambda path, place: path.write_text("<html>404\n" * 9), "not a checkpoint", AGAIN
    ),
    case(
        "text as a pickle",
        lambda path, place: path.write_text("<html>404\n" * 9),
        "not a checkpoint",
        AGAIN,
        suffix=".pkl",
    ),
    case(
        "picture as weights",
        lambda path, place: shutil.copy(place.images[0], path),
        "not a checkpoint",
        AGAIN,
    ),
    case("code in weights", hold_code, f"holds {os.mkdir.__module__}.mkdir", "save its weights alone"),
    case(
        "whole model object",
        lambda path, place: torch.save(torch.nn.Linear(2, 2), path),
        "holds torch.nn",
        "save its weights alone",
    ),
    case(
        "optimiser alone",
        content(lambda c: {"optimizer": {"state": {}}}),
        "'optimizer' is a dict",
        DICTIONARY,
    ),
    case(
        "number of an iteration alone",
        content(lambda c: {"iteration": 7}),
        "'iteration' is a int",
        DICTIONARY,
    ),
    case("complex weights", tensors(lambda t: t * 1j), "torch.complex64", "not a tensor", DICTIONARY),
    case("no entries", content(lambda c: {"model": {}}), "holds no weights", DICTIONARY),
    case("list of tensors", content(lambda c: list(c["model"].values())), "holds no weights", DICTIONARY),
    case(
        "words for tensors",
        content(lambda c: {"model": {"a": "b"}}),
        "'a' is a str",
        DICTIONARY,
    ),
    case(
        "another architecture",
        content(lambda c: {"encoder.weight": torch.zeros(3)}),
        "is part of this model",
        ARCHITECTURE,
    ),
    case("another number of classes", content(nine_classes), "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 9"),
    case("another width", content(lambda c: c), "has shape", ARCHITECTURE, MODEL__SEM_SEG_HEAD__MASK_DIM=64),
    case(
        "fewer queries",
        content(lambda c: c),
        "has shape",
        ARCHITECTURE,
        MODEL__MASK_FORMER__NUM_OBJECT_QUERIES=11,
    ),
    case(
        "backbone alone", only("backbone."), "not a checkpoint of this model", "sem_seg_head", CONFIGURATION
    ),
    case("head alone", only("sem_seg_head."), "not a checkpoint of this model", "backbone.", CONFIGURATION),
    case(
        "one layer fewer",
        content(lambda c: c),
        "not a checkpoint of this model",
        CONFIGURATION,
        MODEL__MASK_FORMER__DEC_LAYERS=3,
    ),
    Case(
        "training from missing weights",
        training_from("none.pth"),
        ("no checkpoint at", "{files}/none.pth", "check MODEL.WEIGHTS"),
    ),
    Case(
        "evaluation without weights",
        lambda place: command(place.run, "--eval-only"),
        ("--eval-only needs weights", "add MODEL.WEIGHTS FILE"),
    ),
    Case(
        "run without checkpoint",
        resume_without_checkpoint,
        ("{files}/none holds no checkpoint", "set OUTPUT_DIR to the run's folder"),
    ),
]
