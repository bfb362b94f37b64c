"""Checkpoints that do not fit, are damaged or hold code: one line, and the model stays as it was."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mask_former.checkpoint import load_weights
from mask_former.errors import InputError
from tests.checkpoint_files import LAYOUTS, OTHER_CLASSES, same, state_of, write_pickle, write_torch
from tests.tiny import tiny_model


def refused(path: Path | str, model: nn.Module | None = None, **options: Any) -> str:
    """The one line that refuses the file; the model is as it was before."""
    model = model or tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError) as error:
        load_weights(model, path, **options)
    assert "\n" not in str(error.value)
    assert same(model, before)
    return str(error.value)


class Evil:
    """Makes a folder when unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.sentinel),)


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    state = state_of(1, OTHER_CLASSES)
    path = write_torch(tmp_path / "a.pth", {"model": state})
    message = refused(path)
    assert "set MODEL.SEM_SEG_HEAD.NUM_CLASSES to 9" in message and "WEIGHTS_SKIP_MISMATCH" in message


def test_another_width_is_refused_without_talk_of_classes(tmp_path: Path) -> None:
    state = state_of(1, {"MODEL.MASK_FORMER.HIDDEN_DIM": 64})
    message = refused(write_torch(tmp_path / "a.pth", state))
    assert "use weights of the configured architecture" in message and "NUM_CLASSES" not in message


def test_nothing_in_common(tmp_path: Path) -> None:
    path = write_torch(tmp_path / "a.pth", {"conv.weight": torch.zeros(3), "conv.bias": torch.zeros(1)})
    assert "none of its 2 entries (conv.weight, …) is part of this model" in refused(path)


@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("layout", ["ours", "old PyTorch", "official"])
def test_files_cut_short(tmp_path: Path, layout: str, kept: float) -> None:
    name, write = LAYOUTS[layout]
    path = write(tmp_path / name, state_of(1))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert f"{path} is not a checkpoint, or is cut short" in refused(path)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
def test_files_that_are_something_else(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404 Not Found</html>\n" * 20)
    assert "is not a checkpoint" in refused(tmp_path / name)


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
def test_code_is_refused_and_not_executed(tmp_path: Path, name: str) -> None:
    sentinel = tmp_path / "executed"
    write = write_torch if name.endswith(".pth") else write_pickle
    path = write(tmp_path / name, {"model": {"weight": [0.0]}, "more": Evil(sentinel)})
    message = refused(path)
    assert f"holds {os.mkdir.__module__}.mkdir" in message and "save its weights alone" in message
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([1, 2], "holds no weights"),
        ({"model": {}}, "holds no weights"),
        ({"model": None}, "holds no weights"),
        ({"model": {"a": {"b": 1}}}, "entry 'a' is a dict, not a tensor"),
        ({"model": {"a": np.array(["text"])}}, "entry 'a' is a ndarray, not a tensor"),
        ({"iteration": 7}, "entry 'iteration' is a int, not a tensor"),
    ],
)
def test_files_without_weights(tmp_path: Path, content: Any, says: str) -> None:
    assert says in refused(write_pickle(tmp_path / "a.pkl", content))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert refused(tmp_path / "gone.pth") == f"no checkpoint at {tmp_path / 'gone.pth'}; check MODEL.WEIGHTS"
    assert "no checkpoint at" in refused(tmp_path)


def test_downloads_that_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: str) -> str:
        raise ConnectionError("no route to host")

    monkeypatch.setattr("mask_former.checkpoint_reading.PathManager.get_local_path", fail)
    message = refused("detectron2://R-50.pkl")
    assert "cannot fetch checkpoint detectron2://R-50.pkl: no route to host" in message
    assert "set MODEL.WEIGHTS to the file" in message
