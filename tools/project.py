"""What every tool does first: the configuration with all the project's keys, and a device that exists."""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode

import pisr_maskformer.hosts.maskformer  # noqa: F401  (registers the PISR predictor and criterion)
from mask_former.config import load_config
from mask_former.data import register_from_config
from mask_former.errors import InputError
from pisr_maskformer.config import add_pisr_config

logger = logging.getLogger(__name__)


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """What a YAML file and KEY VALUE pairs say, with all the project's keys and no look at this machine."""
    return load_config(path, overrides, extend=[add_pisr_config])


def project_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Configuration of a YAML file and KEY VALUE pairs, data sets registered, on a device that exists.

    Raises InputError as `load_config` does. MODEL.DEVICE "cuda" becomes "cpu", with a warning, where no GPU
    is visible.
    """
    cfg = read_config(path, overrides)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("no GPU is visible: MODEL.DEVICE is cpu instead of %s", cfg.MODEL.DEVICE)
        cfg.MODEL.DEVICE = "cpu"
    register_from_config(cfg)
    return cfg


def require_writable(folder: str | Path) -> Path:
    """Make the folder if need be; InputError when nothing can be written there."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # a name of its own: every process of a run asks
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to {folder}: {error.strerror}; choose another folder or mend its rights"
        ) from error
    return folder
