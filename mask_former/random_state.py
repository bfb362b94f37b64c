"""The random states of this process, of all four generators that training draws from, as plain data.

Python's and NumPy's serve augmentation, PyTorch's initialisation and dropout. What is returned holds tensors
and numbers only, so that a checkpoint with it loads without running code.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of the generators of Python, NumPy, PyTorch and, where CUDA is in use, the current GPU."""
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": [version, list(numbers), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.random.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Go back to a state that `random_state` gave."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.random.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def same_random_state() -> Iterator[None]:
    """After the body the generators stand where they stood before it."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """The body draws what depends on `key` (non-negative numbers) alone; its draws change nothing after it.

    The generators of the CPU only: the body is a data mapper's.
    """
    words = [int(word) for word in np.random.SeedSequence(key).generate_state(3)]
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    random.seed(words[0])
    np.random.seed(words[1])
    torch.random.default_generator.manual_seed(words[2])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])
