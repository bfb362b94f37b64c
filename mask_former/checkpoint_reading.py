"""Reading checkpoints of every layout that users have. Nothing in a file is executed.

Layouts: `.pth` of this project and of detectron2 ({"model": …, "optimizer": …}), bare state dictionaries, and
`.pkl` of detectron2's model zoo and of official MaskFormer ({"model": NumPy arrays, "__author__": …}).
Pickles may hold arrays, tensors and plain containers, and nothing else.
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from mask_former.errors import InputError

NUMPY_GLOBALS = {
    (module, name)
    for module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric")
    for name in ("ndarray", "dtype", "_reconstruct", "scalar", "_frombuffer")
}
PLAIN_GLOBALS = {("collections", "OrderedDict"), ("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that knows NumPy arrays and plain containers only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in NUMPY_GLOBALS | PLAIN_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not supported")  # PyTorch's own words


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Contents of a checkpoint, the weights as tensors on the CPU under "model".

    `path` may be anything detectron2's PathManager knows, `detectron2://…` included (downloaded once). Raises
    InputError when the file is missing, cut short, holds code, or holds no weights.
    """
    local = local_path(str(path))
    try:
        file = local.open("rb")
    except OSError as error:
        raise InputError(f"cannot read checkpoint {path}: {error.strerror}; check its permissions") from error
    with file:
        try:
            if local.suffix == ".pkl":
                content = _ArrayUnpickler(file, encoding="latin1").load()
            else:
                content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged pickle can ask for anything, and so raise nearly anything
            raise InputError(f"{path} {_why_unreadable(error)}") from error
    return _with_model_entry(content, path)


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a file whose reading failed, and how to mend it, in one line."""
    text = " ".join(str(error).split())
    foreign = re.search(r"GLOBAL ([\w.]+)", text)
    if foreign:
        return f"holds {foreign[1]}, and only tensors and arrays are read from files; save its weights alone"
    # PyTorch wraps its reason in advice to load the file unsafely and in a link
    reason = text.split("WeightsUnpickler error:")[-1].split("Check the documentation")[0].strip()[:160]
    return (
        f"is not a checkpoint, or is cut short: {reason or type(error).__name__}; copy or download it again"
    )


def local_path(path: str) -> Path:
    """The file behind a path or address, downloaded if need be; InputError when there is none."""
    try:
        local = Path(PathManager.get_local_path(path))
    except Exception as error:  # what a download raises depends on the handler: network, HTTP, disk
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"cannot fetch checkpoint {path}: {reason}; download it elsewhere and set MODEL.WEIGHTS to "
            "the file, or MODEL.WEIGHTS '' to start at random"
        ) from error
    if not local.is_file():
        raise InputError(f"no checkpoint at {path}; check MODEL.WEIGHTS")
    return local


def _with_model_entry(content: Any, path: str | Path) -> dict[str, Any]:
    """The content as {"model": tensors by name, …}."""
    if isinstance(content, dict) and "model" not in content:
        inner = content.get("state_dict")
        content = {"model": inner if isinstance(inner, dict) else content}
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path} holds no weights; expected a state dictionary, bare or under 'model'")
    tensors: dict[str, Tensor] = OrderedDict()
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        if not isinstance(value, Tensor):
            raise InputError(
                f"{path}: entry {name!r} is a {type(value).__name__}, not a tensor; not a state dictionary"
            )
        tensors[str(name).removeprefix("module.")] = value
    return {**content, "model": tensors}
