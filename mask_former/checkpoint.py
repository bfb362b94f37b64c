"""Reading checkpoints of every layout that users have, and loading them with a report of what matched.

Layouts: `.pth` of this project and of detectron2 ({"model": …, "optimizer": …}), bare state dictionaries, and
`.pkl` of detectron2's model zoo and of official MaskFormer ({"model": NumPy arrays, "__author__": …}).
Nothing in a file is executed: pickles may hold arrays, tensors and plain containers, and nothing else.
"""

import logging
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from mask_former.checkpoint_names import modernise_names, prefix_backbone_names
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
    local = _local_path(str(path))
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


def _local_path(path: str) -> Path:
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


@dataclass(frozen=True)
class LoadReport:
    """Which entries of a checkpoint reached the model; names as the model calls them."""

    path: str
    matched: list[str]
    missing: list[str]  # of the model, not in the checkpoint: they keep their initial values
    unexpected: list[str]  # of the checkpoint, not in the model: not used
    # in both with different shapes: they keep initial values
    mismatched: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of counts, then the names that did not match, grouped by module."""
        lines = [
            f"{self.path}: {len(self.matched)} entries matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected, {len(self.mismatched)} of another shape"
        ]
        for title in ("missing", "unexpected", "mismatched"):
            lines += [f"  {title}: {group}" for group in _grouped(getattr(self, title))]
        return "\n".join(lines)


def _grouped(names: Iterable[str], depth: int = 3) -> list[str]:
    """Names with a common beginning of `depth` parts as one row with their number."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(".".join(name.split(".")[:depth]), []).append(name)
    return [
        rows[0] if len(rows) == 1 else f"{start}.* ({len(rows)} entries)" for start, rows in groups.items()
    ]


def load_weights(model: nn.Module, path: str | Path, skip_mismatch: bool = False) -> LoadReport:
    """Load the weights of a checkpoint into a model, and report (and log) what matched.

    Raises InputError when no entry has a name of the model, or, unless `skip_mismatch`, when an entry has
    another shape: the weights belong to another architecture or number of classes. The model is then
    unchanged.
    """
    return load_state(model, read_checkpoint(path)["model"], str(path), skip_mismatch)


def load_state(
    model: nn.Module, state: dict[str, Tensor], path: str, skip_mismatch: bool = False
) -> LoadReport:
    """As `load_weights`, from tensors that came from `path`."""
    own = model.state_dict()
    state = dict(state)
    modernise_names(state)
    state = prefix_backbone_names(state, own)
    common = [name for name in state if name in own]
    mismatched = [name for name in common if state[name].shape != own[name].shape]
    if not common:
        raise InputError(
            f"{path}: none of its {len(state)} entries ({next(iter(state))}, …) is part of this model; "
            "use weights of the configured architecture"
        )
    if mismatched and not skip_mismatch:
        raise InputError(_mismatch_line(mismatched, state, own, path))
    matched = [name for name in common if name not in set(mismatched)]
    model.load_state_dict({name: state[name] for name in matched}, strict=False)
    report = LoadReport(
        path=path,
        matched=matched,
        missing=[name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        unexpected=[name for name in state if name not in own],
        mismatched=mismatched,
    )
    logger.log(logging.WARNING if report.unexpected or mismatched else logging.INFO, report.summary())
    return report


def _mismatch_line(mismatched: list[str], state: dict[str, Tensor], own: dict[str, Tensor], path: str) -> str:
    name = mismatched[0]
    theirs, ours = tuple(state[name].shape), tuple(own[name].shape)
    others = f" and {len(mismatched) - 1} more" if len(mismatched) > 1 else ""
    classes = [
        n for n in mismatched if n.endswith(("class_embed.weight", "class_embed.bias", "empty_weight"))
    ]
    if len(classes) == len(mismatched):
        mend = f"set MODEL.SEM_SEG_HEAD.NUM_CLASSES to {state[classes[0]].shape[0] - 1}"
    else:
        mend = "use weights of the configured architecture"
    return (
        f"{path}: {name} has shape {theirs}, this model's has {ours}{others}; {mend}, "
        "or MODEL.WEIGHTS_SKIP_MISMATCH True to start these entries anew"
    )


class Checkpointer(DetectionCheckpointer):
    """detectron2's checkpointer with this module's way of reading files and matching names.

    `report` is the LoadReport of the last load.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, skip_mismatch: bool = False, **checkpointables: Any
    ):
        super().__init__(model, save_dir, **checkpointables)
        self.skip_mismatch = skip_mismatch
        self.report: LoadReport | None = None
        self._path = ""

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._path = str(path)
        if path:
            _local_path(str(path))  # a missing file or failing download becomes one line here
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        return read_checkpoint(filename)

    def _load_model(self, checkpoint: dict[str, Any]) -> None:
        self.report = load_state(self.model, checkpoint.pop("model"), self._path, self.skip_mismatch)
