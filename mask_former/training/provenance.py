"""What a run depends on besides its code and configuration: environment, machine, data."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import detectron2
import numpy as np
import torch
import torchvision
from detectron2.utils.collect_env import collect_env_info

from mask_former.machine import usable_cores

logger = logging.getLogger(__name__)

# Never the whole environment: it may hold secrets.
VARIABLES = (
    "SLURM_JOB_ID",
    "SLURM_JOB_NAME",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_CLUSTER_NAME",
    "SLURM_JOB_PARTITION",
    "SLURM_JOB_NODELIST",
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "DETECTRON2_DATASETS",
)


def machine_facts() -> dict[str, Any]:
    """Versions, devices and the job, as run.json tells them."""
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpus else None,
        "gpus": gpus,
        "cpus": usable_cores(),
        "platform": platform.platform(),
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def environment_text() -> str:
    """detectron2's report on the environment and every installed package with its version."""
    try:
        report = collect_env_info()
    except Exception as error:  # it asks compilers and drivers; a run does not depend on the answers
        logger.warning("detectron2's report on the environment failed: %s", error)
        report = f"detectron2's report failed: {error}"
    return "\n".join([report.rstrip(), "", *sorted(_packages(), key=str.lower), ""])


def _packages() -> set[str]:
    packages = set()
    for distribution in importlib.metadata.distributions():
        try:
            name, version = distribution.metadata["Name"], distribution.version
        except (TypeError, KeyError, OSError):  # a folder that an interrupted pip left behind
            continue
        if name:
            packages.add(f"{name}=={version}")
    return packages


def data_checksum(records_by_name: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """SHA-256 over the records of data sets, in hex: equal when the same files, segments and sizes are used.

    It sees the data sets' names, the order of records and everything in them, but not the order of keys or of
    the data sets. Paths (what stands under keys in ..."file_name") count from the folder that all files of a
    data set share, so the data may move as a whole. It opens no file: pixels of images and label maps that
    change under the same name are not noticed.
    """
    digest = hashlib.sha256()
    for name in sorted(records_by_name):
        records = records_by_name[name]
        digest.update(_canonical([name, len(records)]))
        for record in _with_relative_paths(records):
            digest.update(_canonical(record))
    return digest.hexdigest()


def _with_relative_paths(records: Sequence[Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
    paths = {key for record in records for key in record if key.endswith("file_name")}
    folders = {os.path.dirname(record[key]) for record in records for key in paths & record.keys()}
    absolute = {folder: os.path.abspath(folder) for folder in folders}
    shared = os.path.commonpath(absolute.values()) if absolute else ""
    relative = {folder: os.path.relpath(path, shared) for folder, path in absolute.items()}
    for record in records:
        moved = {}
        for key in paths & record.keys():
            folder, name = os.path.split(record[key])
            moved[key] = f"{relative[folder]}/{name}"
        yield {**record, **moved}


def _canonical(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=_plain)
    return text.encode() + b"\n"


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy's numbers and arrays, run-length codes, paths."""
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"a record holds a {type(value).__name__}, which has no canonical form")
