"""Ways of computing the same step faster: memory layout of the backbone, compiled parts of the network.

Neither changes a parameter's name, nor what a checkpoint holds. (Frozen norms: mask_former/frozen_norms.py;
the fused optimiser: mask_former/optimizer.py.)
"""

import logging
import os
import shutil
import sysconfig
from importlib.util import find_spec
from pathlib import Path

import torch
from detectron2.config import CfgNode
from torch import nn

logger = logging.getLogger(__name__)

# What takes and returns tensors alone, so that no image's own size is a constant of the compiled code.
COMPILED_PARTS = ("backbone", "sem_seg_head.pixel_decoder", "sem_seg_head.predictor.transformer")


def accelerate(cfg: CfgNode, model: nn.Module) -> None:
    """What SOLVER.AMP.CHANNELS_LAST and SOLVER.COMPILE ask for, in place; before an optimiser is built."""
    if cfg.SOLVER.AMP.ENABLED and cfg.SOLVER.AMP.CHANNELS_LAST:
        lay_channels_last(model.get_submodule("backbone"))
    if cfg.SOLVER.COMPILE:
        compile_parts(model, next(model.parameters()).device)


def lay_channels_last(module: nn.Module) -> None:
    """Lay the weights of 2-d convolutions out channels last; what the convolutions return follows them.

    Not those with a side of 1: both layouts are the same memory, and gradients may have the other's strides.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and min(part.weight.shape) > 1:
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)


def compile_parts(model: nn.Module, device: torch.device, backend: str = "inductor") -> None:
    """Have torch.compile compile COMPILED_PARTS, in place, at their first call, and the criterion's losses.

    Without the compiler that `backend` "inductor" needs, one warning, and all stays as it is.
    """
    missing = missing_compiler(device) if backend == "inductor" else ""
    if missing:
        logger.warning("SOLVER.COMPILE: nothing is compiled, because %s; training goes on without", missing)
        return
    for name in COMPILED_PARTS:
        model.get_submodule(name).compile(backend=backend)
    criterion = getattr(model, "criterion", None)
    if criterion is not None and hasattr(criterion, "compiled"):
        criterion.compiled = True


def missing_compiler(device: torch.device) -> str:
    """What torch.compile lacks on this machine; "" when it has all."""
    candidates = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "c++"]
    if not any(shutil.which(candidate) for candidate in candidates):
        return f"there is no C++ compiler ({' or '.join(candidates)}) on PATH; install one, or set CXX"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are missing (Debian, Ubuntu: apt-get install python3-dev)"
    if device.type == "cuda" and find_spec("triton") is None:
        return "the package triton, which comes with torch for CUDA on Linux, is not installed"
    return ""
