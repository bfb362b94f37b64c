"""Names of checkpoint entries: those of older or foreign checkpoints, and those of this model."""

from collections.abc import Iterable, MutableMapping
from typing import Any

HEAD_PARTS = ("pixel_decoder.", "predictor.")


def modernise_names(state: MutableMapping[str, Any], head_prefix: str = "sem_seg_head.") -> list[str]:
    """Rename, in place, entries of early official checkpoints: the pixel decoder's lie directly in the head.

    Returns the old names. Entries that already lie under `pixel_decoder.` or `predictor.` stay.
    """
    old_names = [
        name
        for name in state
        if name.startswith(head_prefix) and not name[len(head_prefix) :].startswith(HEAD_PARTS)
    ]
    for name in old_names:
        state[f"{head_prefix}pixel_decoder.{name[len(head_prefix) :]}"] = state.pop(name)
    return old_names


def prefix_backbone_names(state: dict[str, Any], model_names: Iterable[str]) -> dict[str, Any]:
    """Entries of a backbone alone (ImageNet weights: `stem.conv1.weight`) as entries of the model.

    A state that has one name of the model already, or whose names gain nothing from the prefix, is returned
    as is.
    """
    names = set(model_names)
    if names & state.keys():
        return state
    prefixed = {f"backbone.{name}": value for name, value in state.items()}
    return prefixed if names & prefixed.keys() else state
