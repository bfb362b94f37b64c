"""Which operations would make a CPU wait for a GPU, seen without one.

    with Synchronisations() as seen:
        step()
    assert not seen.operations

What is seen are the library's own operations, in forward and backward, that bring a value or a number of
elements to the CPU. (Copies from one device to another cannot be seen where there is only one.)
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "aten::_local_scalar_dense",  # .item(), float(), bool(), if tensor
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::nonzero_numpy",
    "aten::argwhere",
    "aten::masked_select",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
    "aten::bincount",
    "aten::repeat_interleave",
}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}


class Synchronisations(TorchDispatchMode):
    """Collects the names of waiting operations, in `operations`, one for every call."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if name in WAITING or (name in INDEXING and _has_bool(args[1])):
            self.operations.append(name)
        return func(*args, **(kwargs or {}))


def _has_bool(indices: Any) -> bool:
    """Whether one of the indices is a mask, whose number of elements has to be counted."""
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices)
