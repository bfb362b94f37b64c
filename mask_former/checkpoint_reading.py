"""Reading checkpoints of every layout that users have. Nothing in a file is executed.

Layouts: `.pth` of this project and of detectron2 ({"model": …, "optimizer": …}), bare state dictionaries, and
`.pkl` of detectron2's model zoo and of official MaskFormer ({"model": NumPy arrays, "__author__": …}).
Pickles may hold arrays, tensors and plain containers, and nothing else.
"""

import logging
import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor

from mask_former.errors import InputError

logger = logging.getLogger(__name__)

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
                _require_checksums(file)
        except Exception as error:  # a damaged pickle can ask for anything, and so raise nearly anything
            raise InputError(f"{path} {_why_unreadable(error)}") from error
    return _with_model_entry(content, path)


def _require_checksums(file: BinaryIO) -> None:
    """BadZipFile when a part of a checkpoint differs from what was written; torch itself does not look."""
    file.seek(0)
    if not zipfile.is_zipfile(file):
        return  # the format of PyTorch before 1.6 has no checksums
    with zipfile.ZipFile(file) as archive:
        if not any(part.CRC for part in archive.infolist()):
            return  # saved without: torch.serialization.set_crc32_options(False)
        damaged = archive.testzip()
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _why_unreadable(error: Exception) -> str:
    """What is wrong with a file whose reading failed, and how to mend it, in one line."""
    text = " ".join(str(error).split())
    foreign = re.search(r"GLOBAL ([\w.]+)", text)
    if foreign:
        return f"holds {foreign[1]}, and only tensors and arrays are read from files; save its weights alone"
    if isinstance(error, zipfile.BadZipFile):
        return f"is damaged: {text}; copy or download it again"
    # PyTorch wraps its reason in advice to load the file unsafely, and in what else may be wrong
    reason = text.split("WeightsUnpickler error:")[-1].split("Check the documentation")[0]
    reason = reason.split(". ")[0].strip()[:160]
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


def _warn_of_nan(tensors: dict[str, Tensor], path: str | Path) -> None:
    """Log a warning when weights are no numbers: every result of such a model is worthless."""
    names = [name for name, value in tensors.items() if value.is_floating_point() and value.isnan().any()]
    if names:
        logger.warning("%s: %d entries hold NaN (%s, …); the run diverged", path, len(names), names[0])


def _with_model_entry(content: Any, path: str | Path) -> dict[str, Any]:
    """The content as {"model": tensors by name, …}."""
    if isinstance(content, dict) and "model" not in content:
        inner = content.get("state_dict")
        content = {"model": inner if isinstance(inner, dict) else content}
    weights = content.get("model") if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not weights:
        raise InputError(f"{path} holds no weights; use a state dictionary, bare or under 'model'")
    tensors: dict[str, Tensor] = OrderedDict()
    for name, value in weights.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), order="C"))
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_complex():
            kind = f"{value.layout} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"{path}: entry {name!r} is a {kind}, not a tensor; use a state dictionary, "
                "bare or under 'model'"
            )
        tensors[str(name).removeprefix("module.")] = value
    _warn_of_nan(tensors, path)
    return {**content, "model": tensors}
