"""Copies between a device and the CPU, from and to page-locked memory.

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


def queued(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, by a copy that nothing waits for: from page-locked memory."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def to_device(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Tensors (n,) of one type, on `device` by a single copy that nothing waits for."""
    packed = queued(torch.cat(list(tensors)), device)
    return list(packed.split([len(tensor) for tensor in tensors]))
