"""Reading the JSON of a data set in COCO's panoptic format: its three lists, and its categories alone."""

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mask_former.errors import InputError


def read_panoptic_json(json_file: str | Path) -> dict[str, Any]:
    """The content of a COCO-panoptic JSON; InputError when it is missing, not JSON, or lacks a list."""
    try:
        content = json.loads(Path(json_file).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{json_file}: no such file; check its path and $DETECTRON2_DATASETS") from error
    except OSError as error:
        raise InputError(f"{json_file}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise InputError(f"{json_file}: is not JSON ({error}); write or fetch it again") from error
    lists = ("images", "annotations", "categories")
    require_keys(content, lists, str(json_file))
    for key in lists:
        if not isinstance(content[key], list):
            raise InputError(f"{json_file}: {key!r} must be a list, as in COCO's panoptic format")
    return content


def read_categories(json_file: str | Path) -> list[dict[str, Any]]:
    """The categories {"id", "name", "isthing"} of a COCO-panoptic JSON, cached until the file changes."""
    path = Path(json_file)
    # only the classes are kept: the content of a large JSON takes gigabytes
    return _cached_categories(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=64)
def _cached_categories(path: Path, _modified: int) -> list[dict[str, Any]]:
    return checked_categories(read_panoptic_json(path), path)


def checked_categories(content: Mapping[str, Any], json_file: str | Path) -> list[dict[str, Any]]:
    """The categories of a JSON that has been read; InputError unless each has an integer id of its own."""
    categories = content["categories"]
    for position, category in enumerate(categories):
        require_keys(category, ("id", "name", "isthing"), f"{json_file}: categories[{position}]")
    ids = [category["id"] for category in categories]
    if not ids or len(set(ids)) < len(ids) or not all(isinstance(key, int) for key in ids):
        raise InputError(
            f"{json_file}: 'categories' must list at least one class, each with an integer id of its own"
        )
    return categories


def require_keys(entry: Any, keys: tuple[str, ...], where: str) -> None:
    """Raise InputError naming the first of `keys` that `entry`, a part of a JSON file, does not have."""
    for key in keys:
        if not isinstance(entry, Mapping) or key not in entry:
            raise InputError(f"{where} has no {key!r}; the file must follow COCO's panoptic format")
