"""Small copies between a device and the CPU: one each way, from and to page-locked memory.

A GPU is waited for in `to_host` alone; every other copy of the loss is only put into the device's queue.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def to_host(tensor: Tensor) -> Tensor:
    """`tensor` on the CPU, when it is there: the one place of the loss that waits for a device."""
    if tensor.device.type != "cuda":
        return tensor.detach().cpu()
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor.detach(), non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    arrived.synchronize()
    return host


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (n,) of one type, on `device` by a single copy that nothing waits for."""
    packed = torch.cat(list(tensors))
    if device.type == "cuda" and packed.device.type == "cpu":
        packed = packed.pin_memory()
    return list(packed.to(device, non_blocking=True).split([len(tensor) for tensor in tensors]))
