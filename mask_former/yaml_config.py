"""YAML configuration files: inheritance by `_BASE_`, and no code in them.

The official MaskFormer files write lists of image sizes as Python expressions. `SIZE_LIST` accepts exactly
that form and computes the list itself; nothing is ever evaluated, and any other tag is refused.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from mask_former.errors import InputError

BASE_KEY = "_BASE_"
SIZE_LIST_TAG = "tag:yaml.org,2002:python/object/apply:eval"
SIZE_LIST = re.compile(
    r"\[\s*int\(\s*(?P<var>[a-z]\w*)\s*\*\s*(?P<scale>\d*\.?\d+)\s*\*\s*(?P<size>\d+)\s*\)"
    r"\s*for\s+(?P=var)\s+in\s+range\(\s*(?P<start>\d+)\s*,\s*(?P<stop>\d+)\s*\)\s*\]"
)


class ConfigLoader(yaml.SafeLoader):
    """SafeLoader that also reads the one list form of the official files, and refuses a key written twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:  # plain YAML would silently keep the last one
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def _size_list(loader: ConfigLoader, node: yaml.Node) -> list[int]:
    """`["[int(x * 0.1 * 640) for x in range(5, 21)]"]` as a list of integers; anything else is refused."""
    items = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    match = SIZE_LIST.fullmatch(items[0].strip()) if len(items) == 1 and isinstance(items[0], str) else None
    if match is None:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            "a configuration is data: only [int(x * S * N) for x in range(A, B)] is read",
            node.start_mark,
        )
    scale, size = float(match["scale"]), int(match["size"])
    return [int(x * scale * size) for x in range(int(match["start"]), int(match["stop"]))]


def _refuse_tag(_: ConfigLoader, node: yaml.Node) -> None:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise yaml.constructor.ConstructorError(
        None, None, f"a configuration is data: {tag} is not read", node.start_mark
    )


ConfigLoader.add_constructor(SIZE_LIST_TAG, _size_list)
ConfigLoader.add_constructor(None, _refuse_tag)  # every other tag


def read_yaml(path: Path) -> dict[str, Any]:
    """One file as nested dictionaries, `_BASE_` not yet followed; InputError names file and line."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=ConfigLoader)
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, RecursionError) as error:
        # PyYAML lets the errors of Python's own conversions through: a 13th month, `!!int x`, bad UTF-8
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{where}: not a configuration we can read: {problem}; correct the file") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: a configuration must be a mapping of keys, found {type(content).__name__}; "
            "it has lines such as SEED: 1"
        )
    return content


def read_yaml_with_base(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """A configuration with its ancestors merged beneath it.

    `_BASE_` is one path or a list of paths (later ones win), relative to the file that names them.
    """
    path = Path(path).expanduser()
    if path.resolve() in _seen:
        raise InputError(f"{path}: {BASE_KEY} leads back to the file itself; take it out")
    content = read_yaml(path)
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(f"{path}: {BASE_KEY} must be a path or a list of paths, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        ancestor = path.parent / Path(base).expanduser()
        _merge_over(merged, read_yaml_with_base(ancestor, (*_seen, path.resolve())))
    _merge_over(merged, content)
    return merged


def _merge_over(below: dict[str, Any], above: dict[str, Any]) -> None:
    """Write `above` into `below`, key by key at every depth."""
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge_over(below[key], value)
        else:
            below[key] = value
