"""Results as JSON files that appear whole or not at all; what is nan or infinite is written as null."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.utils import comm

from mask_former.atomic_write import replace_file


def write_metrics(results: Mapping[str, Any], path: str | Path) -> None:
    """Write what an evaluation returned; processes other than the main one write nothing."""
    if comm.is_main_process():
        write_json(results, path)


def write_json(value: Any, path: str | Path, indent: int | None = 1) -> None:
    """Write nested dicts, lists and numbers (numpy's too), making the folder when it is missing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False) + "\n"
    with replace_file(path) as file:
        file.write(text.encode())


def plain(value: Any) -> Any:
    """`value` in types that JSON has: numpy scalars and arrays become Python's, nan and infinities None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
