"""Checkpoints of every layout load, with a report of what matched; so does the trainer's checkpointer."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mask_former.checkpoint import load_weights
from mask_former.checkpoint_names import modernise_names, prefix_backbone_names
from mask_former.checkpoint_reading import read_checkpoint
from mask_former.errors import InputError
from mask_former.training.checkpointer import Checkpointer
from tests.checkpoint_files import (
    LAYOUTS,
    OTHER_CLASSES,
    State,
    as_numpy,
    legacy,
    same,
    state_of,
    write_pickle,
    write_torch,
)
from tests.tiny import ENCODER, resnet, tiny_model


@pytest.mark.parametrize("changes", [{}, ENCODER], ids=["plain", "encoder"])
@pytest.mark.parametrize(("name", "write"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts(
    tmp_path: Path, name: str, write: Callable[[Path, State], Path], changes: dict[str, Any]
) -> None:
    state = state_of(1, changes)
    model = tiny_model(changes)
    assert not same(model, state)
    report = load_weights(model, write(tmp_path / name, state))
    assert same(model, state)
    assert set(report.matched) == state.keys()
    assert (report.missing, report.unexpected, report.mismatched) == ([], [], [])


def test_legacy_names_load_without_this_module() -> None:
    """detectron2's own way, `load_state_dict`, strictly: renaming is the head's."""
    state = state_of(1, ENCODER)
    model = tiny_model(ENCODER)
    given = legacy(state)
    assert given.keys() != state.keys()
    names = set(given)
    model.load_state_dict(given)
    assert same(model, state)
    assert set(given) == names  # the caller's dictionary stays


def test_legacy_names_of_a_head_by_itself() -> None:
    head = tiny_model().sem_seg_head
    state = {name.removeprefix("pixel_decoder."): value for name, value in head.state_dict().items()}
    other = tiny_model(seed=1).sem_seg_head
    other.load_state_dict(state)
    assert same(other, head.state_dict())


def test_modernise_names_tells_the_old_names() -> None:
    state = {"backbone.a": 0, "sem_seg_head.layer_1.weight": 1, "sem_seg_head.predictor.b": 2}
    assert modernise_names(state) == ["sem_seg_head.layer_1.weight"]
    assert state == {
        "backbone.a": 0,
        "sem_seg_head.predictor.b": 2,
        "sem_seg_head.pixel_decoder.layer_1.weight": 1,
    }


def test_prefix_is_added_only_where_it_helps() -> None:
    names = ["backbone.stem.weight", "head.weight"]
    assert prefix_backbone_names({"stem.weight": 1}, names) == {"backbone.stem.weight": 1}
    assert prefix_backbone_names({"stem.weight": 1, "head.weight": 2}, names) == {
        "stem.weight": 1,
        "head.weight": 2,
    }
    assert prefix_backbone_names({"other": 1}, names) == {"other": 1}


def test_backbone_weights_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ImageNet weights: the backbone's names without prefix, and a classifier that nothing here uses."""
    model = tiny_model(resnet(18))
    state = as_numpy(tiny_model(resnet(18), seed=1).backbone.state_dict())
    path = write_pickle(tmp_path / "r18.pkl", {"model": {**state, "stem.fc.weight": np.zeros((10, 4))}})
    head = {name: value.clone() for name, value in model.sem_seg_head.state_dict().items()}
    with caplog.at_level(logging.INFO, "mask_former.checkpoint"):
        report = load_weights(model, path)
    assert set(report.matched) == {f"backbone.{name}" for name in state}
    assert report.unexpected == ["backbone.stem.fc.weight"]
    assert set(report.missing) == {name for name in model.state_dict() if not name.startswith("backbone.")}
    assert torch.equal(
        model.backbone.state_dict()["stem.conv1.weight"], torch.from_numpy(state["stem.conv1.weight"])
    )
    assert same(model.sem_seg_head, head)

    counts = f"{len(state)} entries matched, {len(report.missing)} missing, 1 unexpected, 0 of another shape"
    assert counts in report.summary().splitlines()[0] and str(path) in report.summary()
    assert "  unexpected: backbone.stem.fc.weight" in report.summary().splitlines()
    assert "missing: sem_seg_head.predictor.mask_embed.* (6 entries)" in report.summary()
    assert report.summary() in [record.getMessage() for record in caplog.records]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}  # something went unused


def test_numbers_without_dimensions_keep_their_shape(tmp_path: Path) -> None:
    """Batch norms count their batches in a scalar, which NumPy stores as an array of shape ()."""
    norm = nn.BatchNorm2d(3)
    norm(torch.randn(2, 3, 4, 4))
    other = nn.BatchNorm2d(3)
    load_weights(other, write_pickle(tmp_path / "a.pkl", {"model": as_numpy(norm.state_dict())}))
    assert same(other, norm.state_dict()) and other.num_batches_tracked.item() == 1


def test_missing_counters_are_not_worth_a_word(tmp_path: Path) -> None:
    """Old checkpoints have no num_batches_tracked, which nothing here reads."""
    state = {
        name: value for name, value in nn.BatchNorm2d(3).state_dict().items() if "num_batches" not in name
    }
    assert load_weights(nn.BatchNorm2d(3), write_torch(tmp_path / "a.pth", state)).missing == []


def test_pickles_of_either_numpy(tmp_path: Path) -> None:
    """NumPy 2 calls its inner module numpy._core, NumPy 1 numpy.core; each must read the other's files."""
    raw = pickle.dumps({"model": {"weight": np.ones((2, 3), np.float32)}}, protocol=2)
    for name in (b"numpy.core.multiarray", b"numpy._core.multiarray"):
        path = tmp_path / "a.pkl"
        path.write_bytes(
            raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray").replace(
                b"numpy.core.multiarray", name
            )
        )
        assert torch.equal(read_checkpoint(path)["model"]["weight"], torch.ones(2, 3))


def test_other_shapes_may_be_skipped(tmp_path: Path) -> None:
    state = state_of(1, OTHER_CLASSES)
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_weights(model, write_torch(tmp_path / "a.pth", state), skip_mismatch=True)
    classifier = {f"sem_seg_head.predictor.class_embed.{name}" for name in ("weight", "bias")}
    assert set(report.mismatched) == classifier | {"criterion.empty_weight"}
    assert set(report.matched) == state.keys() - set(report.mismatched)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in report.mismatched else state[name])


def test_checkpointer_saves_and_restores_model_and_optimizer(tmp_path: Path) -> None:
    model = tiny_model(seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.25)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    Checkpointer(model, str(tmp_path), optimizer=optimizer).save("model_0000007", iteration=7)

    other = tiny_model(seed=2)
    other_optimizer = torch.optim.AdamW(other.parameters(), lr=0.5)
    checkpointer = Checkpointer(other, str(tmp_path), optimizer=other_optimizer)
    assert checkpointer.has_checkpoint()
    rest = checkpointer.resume_or_load("", resume=True)
    assert rest["iteration"] == 7
    assert same(other, model.state_dict())
    assert other_optimizer.param_groups[0]["lr"] == 0.25 and len(other_optimizer.state) == len(
        optimizer.state
    )
    assert checkpointer.report is not None and len(checkpointer.report.matched) == len(model.state_dict())


def test_checkpointer_refuses_what_load_weights_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no checkpoint at"):
        Checkpointer(tiny_model()).load(str(tmp_path / "gone.pth"))
    state = state_of(1, OTHER_CLASSES)
    path = write_torch(tmp_path / "a.pth", {"model": state})
    with pytest.raises(InputError, match="NUM_CLASSES to 9"):
        Checkpointer(tiny_model()).load(str(path))
    checkpointer = Checkpointer(tiny_model(), skip_mismatch=True)
    checkpointer.load(str(path))
    assert checkpointer.report is not None and len(checkpointer.report.mismatched) == 3


def test_checkpointer_with_no_path_loads_nothing() -> None:
    model = tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert Checkpointer(model).load("") == {}
    assert same(model, before)


def test_part_of_a_backbone_is_refused_unless_asked_for(tmp_path: Path) -> None:
    model = tiny_model()
    state = {name: value for name, value in model.state_dict().items() if ".res5." not in name}
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(
        InputError, match=r"another backbone: \d+ entries of this one are missing and 0 unknown"
    ):
        load_weights(model, tmp_path / "part.pth")
    deeper = model.state_dict() | {"backbone.res5.7.conv1.weight": torch.zeros(1)}
    torch.save(deeper, tmp_path / "deeper.pth")
    with pytest.raises(InputError, match=r"0 entries of this one are missing and 1 unknown"):
        load_weights(model, tmp_path / "deeper.pth")
    assert load_weights(model, tmp_path / "part.pth", skip_mismatch=True).missing


def test_complete_refuses_what_leaves_the_model_partly_random(tmp_path: Path) -> None:
    model = tiny_model()
    state = dict(model.state_dict())
    del state["criterion.empty_weight"]  # a constant of the configuration
    torch.save(state, tmp_path / "whole.pth")
    assert load_weights(model, tmp_path / "whole.pth", complete=True).missing == ["criterion.empty_weight"]
    torch.save(model.backbone.state_dict(), tmp_path / "backbone.pth")
    with pytest.raises(InputError, match="not a checkpoint of this model"):
        load_weights(model, tmp_path / "backbone.pth", complete=True)
    torch.save(state | {"sem_seg_head.predictor.extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(
        InputError, match=r"0 entries are missing and 1 unknown \(sem_seg_head.predictor.extra"
    ):
        load_weights(model, tmp_path / "more.pth", complete=True)
