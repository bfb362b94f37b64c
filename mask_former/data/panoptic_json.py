"""Reading the JSON of a data set in COCO's panoptic format: its three lists, its categories, and every field.

What a field may hold is written here once; the file, the entry and the field stand in the message.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from mask_former.data.id_map import MAX_ID
from mask_former.errors import InputError


def is_integer(value: Any) -> bool:
    """True for whole numbers; True and False, which Python counts as such, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def _is_file_name(value: Any) -> bool:
    if not isinstance(value, str) or value == "" or "\0" in value:
        return False
    try:
        os.fsencode(value)  # JSON can write half a character
    except UnicodeEncodeError:
        return False
    return True


def _is_color(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(is_integer(channel) and 0 <= channel <= 255 for channel in value)
    )


Field = tuple[Callable[[Any], bool], str]  # whether a value is valid, and what is
POSITIVE: Field = (lambda value: is_integer(value) and value > 0, "a positive integer")
IMAGE_ID: Field = (lambda value: is_integer(value) or isinstance(value, str), "an integer or a string")
FILE_NAME: Field = (_is_file_name, "the name of a file")
FLAG: Field = (lambda value: value in (0, 1), "0 or 1")

IMAGE = {"id": IMAGE_ID, "file_name": FILE_NAME, "height": POSITIVE, "width": POSITIVE}
ANNOTATION: dict[str, Field] = {
    "image_id": IMAGE_ID,
    "file_name": FILE_NAME,
    "segments_info": (lambda value: isinstance(value, list), "a list"),
}
SEGMENT: dict[str, Field] = {
    "id": (lambda value: is_integer(value) and 0 < value <= MAX_ID, f"an integer of 1..{MAX_ID}"),
    "category_id": (is_integer, "an integer"),
}
CATEGORY: dict[str, Field] = {
    "id": (is_integer, "an integer"),
    "name": (lambda value: isinstance(value, str) and value.strip() != "", "a name"),
    "isthing": FLAG,
}
OPTIONAL: dict[str, Field] = {"iscrowd": FLAG, "color": (_is_color, "three integers of 0..255")}


def read_panoptic_json(json_file: str | Path) -> dict[str, Any]:
    """The content of a COCO-panoptic JSON; InputError when it is missing, not JSON, or lacks a list."""
    try:
        content = json.loads(Path(json_file).read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{json_file}: no such file; check its path and $DETECTRON2_DATASETS") from error
    except OSError as error:
        raise InputError(f"{json_file}: cannot be read ({error.strerror}); check the path") from error
    except RecursionError as error:
        raise InputError(f"{json_file}: is nested too deeply to be read; write or fetch it again") from error
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
    """The categories of a JSON that has been read; InputError unless each has an id and a name of its own."""
    categories = content["categories"]
    if not categories:
        raise InputError(f"{json_file}: 'categories' must list at least one class; add those of the ids")
    first_with: dict[tuple[str, Any], int] = {}
    for position, category in enumerate(categories):
        where = f"{json_file}: categories[{position}]"
        require_fields(category, CATEGORY, where)
        for key in ("id", "name"):
            earlier = first_with.setdefault((key, category[key]), position)
            if earlier != position:
                raise InputError(
                    f"{where}: the {key} {category[key]!r} is that of categories[{earlier}] too; "
                    "each class needs an integer id of its own and a name of its own"
                )
    return categories


def require_fields(entry: Any, fields: Mapping[str, Field], where: str) -> None:
    """Raise InputError naming the first field of a JSON's entry that is missing or has an unfit value."""
    require_keys(entry, fields, where)
    for table in (fields, OPTIONAL):
        for key, (is_valid, valid) in table.items():
            if key in entry and not is_valid(entry[key]):
                raise InputError(
                    f"{where}: {key} is {repr(entry[key])[:80]}, but must be {valid}; correct the file"
                )


def require_keys(entry: Any, keys: Iterable[str], where: str) -> None:
    """Raise InputError naming the first of `keys` that `entry`, a part of a JSON file, does not have."""
    for key in keys:
        if not isinstance(entry, dict) or key not in entry:
            raise InputError(f"{where} has no {key!r}; the file must follow COCO's panoptic format")
