"""A run's folder (OUTPUT_DIR) tells what made it.

run.lock               who writes here now (run_lock.py)
run.json               {"starts": [...]}: an entry for the first start and for every resume
provenance/            what the entries name: git_diff_HASH.patch, environment_HASH.txt, config_HASH.yaml;
                       one file for each content, so that a resume with other code keeps both
"""

import hashlib
import json
import logging
import os
import shlex
import shutil
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError
from mask_former.evaluation.metrics_file import write_json
from mask_former.training.git_state import git_state
from mask_former.training.provenance import environment_text, machine_facts
from mask_former.training.run_lock import LOCK_FILE, cannot_write, now, user_name

logger = logging.getLogger(__name__)

RUN_FILE = "run.json"
PROVENANCE = "provenance"
# A resume may go to another folder or machine; the seed in use is compared by itself.
KEYS_NOT_COMPARED = frozenset({"OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "SEED"})
LONGEST_SHOWN = 80  # characters of a configuration's value in a warning


def record_start(
    folder: str | Path,
    cfg: CfgNode,
    *,
    seed: int | None,
    world_size: int,
    start_iteration: int,
    samples_seen: int,
    data_checksum: str | None,
    command: Sequence[str] | str,
) -> dict[str, Any]:
    """Append an entry on this start to the folder's run.json and return it; for the main process only.

    seed: the one in use. start_iteration, samples_seen: 0 for a first start. data_checksum: that of
    `provenance.data_checksum`. command: sys.argv, or a line. To be called under `run_lock.locked`. A run.json
    that cannot be read is kept beside the new one, with a warning. Where git does not answer, within 20
    seconds, the entry says so.
    """
    folder = Path(folder)
    given = {
        "seed": seed,
        "world_size": world_size,
        "start_iteration": start_iteration,
        "samples_seen": samples_seen,
        "data_checksum": data_checksum,
    }
    line = command if isinstance(command, str) else shlex.join(command)
    try:
        entry = {"time": now(), "command": line, **given, **_circumstances(folder, cfg)}
        run = _read_run(folder / RUN_FILE)
        write_json({**run, "starts": [*run["starts"], entry]}, folder / RUN_FILE)
    except OSError as error:
        raise InputError(cannot_write(folder, error)) from error
    return entry


def _circumstances(folder: Path, cfg: CfgNode) -> dict[str, Any]:
    """What record_start finds out by itself; the files that the entry names are written."""
    code = git_state(output_marker=LOCK_FILE)
    if code.reason:
        logger.warning("the run folder does not tell the whole state of the code: %s", code.reason)
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "user": user_name(),
        "working_directory": os.getcwd(),
        "config": _keep(folder, "config_{}.yaml", cfg.dump().encode()),
        "git": {
            "revision": code.revision,
            "branch": code.branch,
            "dirty": code.dirty,
            "diff": _keep(folder, "git_diff_{}.patch", code.patch) if code.patch else None,
            "reason": code.reason,
        },
        "environment": _keep(folder, "environment_{}.txt", environment_text().encode()),
        **machine_facts(),
    }


def remove_records(folder: str | Path) -> None:
    """Delete what a run wrote besides its checkpoints, log.txt apart, for another that takes its place."""
    folder = Path(folder)
    for name in ("inference", "divergence", PROVENANCE):
        shutil.rmtree(folder / name, ignore_errors=True)
    names = (RUN_FILE, "metrics.json", "config.yaml", "wandb_id.txt")
    for path in [*(folder / name for name in names), *folder.glob("events.out.tfevents.*")]:
        path.unlink(missing_ok=True)


def warn_of_changes(folder: str | Path) -> list[str]:
    """Log a warning for each difference of the last start in run.json from the one before; returns them.

    For a resume, after `record_start`. Compared: revision and uncommitted changes of the code, data, seed and
    configuration, apart from KEYS_NOT_COMPARED.
    """
    folder = Path(folder)
    starts = _read_run(folder / RUN_FILE)["starts"]
    if len(starts) < 2:
        return []
    before, after = starts[-2:]
    changes = [
        f"{what}: {before.get(key)} -> {after.get(key)}"
        for what, key in (("the data's checksum", "data_checksum"), ("the seed", "seed"))
        if before.get(key) != after.get(key)
    ]
    changes += _code_changes(before.get("git") or {}, after.get("git") or {})
    changes += _config_changes(folder / PROVENANCE, before.get("config"), after.get("config"))
    for change in changes:
        logger.warning("this resume differs from the start before it in %s", change)
    return changes


def _code_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    if before.get("revision") != after.get("revision"):
        return [f"the code's revision: {before.get('revision')} -> {after.get('revision')}"]
    if before.get("diff") != after.get("diff"):
        return [f"the code's uncommitted changes: {before.get('diff')} -> {after.get('diff')}"]
    return []


def _config_changes(provenance: Path, before: str | None, after: str | None) -> list[str]:
    if before == after:
        return []
    try:
        old, new = (flat(yaml.safe_load((provenance / str(name)).read_text())) for name in (before, after))
    except (OSError, ValueError, yaml.YAMLError) as error:
        return [f"a configuration that cannot be compared: {' '.join(str(error).split())}"]
    return [
        f"{key}: {_shown(old, key)} -> {_shown(new, key)}"
        for key in sorted(old.keys() | new.keys())
        if key not in KEYS_NOT_COMPARED and _shown(old, key, None) != _shown(new, key, None)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as {"A.B.C": value}."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return leaves


def _shown(values: Mapping[str, Any], key: str, longest: int | None = LONGEST_SHOWN) -> str:
    text = repr(values[key]) if key in values else "absent"
    return text if longest is None or len(text) <= longest else text[: longest - 3] + "..."


def _keep(folder: Path, name: str, content: bytes) -> str:
    """Write `content` to provenance/ under its hash, unless it is there; returns the file's name."""
    name = name.format(hashlib.sha256(content).hexdigest()[:12])
    path = folder / PROVENANCE / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(content)
    return name


def _read_run(path: Path) -> dict[str, Any]:
    """The content of run.json; without starts when it is missing or, put aside, damaged."""
    try:
        content = json.loads(path.read_bytes())
        if all(isinstance(entry, dict) for entry in content["starts"]):
            return dict(content)
    except FileNotFoundError:
        return {"starts": []}
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    aside = _unused(path.with_name(path.name + ".damaged"))
    os.replace(path, aside)
    logger.warning("%s cannot be read: it is kept as %s, and a new one begun", path, aside.name)
    return {"starts": []}


def _unused(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}.{number}")
    return candidate
