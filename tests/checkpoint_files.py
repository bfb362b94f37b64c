"""Weights of the tiny model, and files that hold them."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.tiny import tiny_model

State = dict[str, torch.Tensor]
PIXEL_DECODER = "sem_seg_head.pixel_decoder."
OTHER_CLASSES = {"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 9, "DATASETS.TRAIN": ()}  # a model with other classes


def state_of(seed: int, changes: dict[str, Any] | None = None) -> State:
    return tiny_model(changes, seed=seed).state_dict()


def same(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], state[name]) for name in own)


def write_pickle(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def write_torch(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def legacy(state: State) -> State:
    """As early official checkpoints had it: the pixel decoder's entries directly in the head."""
    return {name.replace(PIXEL_DECODER, "sem_seg_head."): value for name, value in state.items()}


def as_numpy(state: State) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in state.items()}


# Every layout a checkpoint may have: file name, and what writes a state there.
LAYOUTS: dict[str, tuple[str, Callable[[Path, State], Path]]] = {
    "ours": ("a.pth", lambda path, state: write_torch(path, {"model": state, "iteration": 3})),
    "bare": ("a.pth", write_torch),
    "state_dict": ("a.pth", lambda path, state: write_torch(path, {"state_dict": state, "epoch": 1})),
    "distributed": (
        "a.pth",
        lambda path, state: write_torch(path, {f"module.{k}": v for k, v in state.items()}),
    ),
    "old PyTorch": (
        "a.pth",
        lambda path, state: torch.save(state, path, _use_new_zipfile_serialization=False) or path,
    ),
    "official": (
        "a.pkl",
        lambda path, state: write_pickle(path, {"model": as_numpy(state), "__author__": "third_party"}),
    ),
    "legacy": ("a.pkl", lambda path, state: write_pickle(path, {"model": as_numpy(legacy(state))})),
    "legacy, distributed": (
        "a.pth",
        lambda path, state: write_torch(path, {f"module.{k}": v for k, v in legacy(state).items()}),
    ),
}
