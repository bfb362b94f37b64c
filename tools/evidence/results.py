"""What a finished run measured, and the small JSON file that is kept of it under docs/evidence/.

A run folder is called ROW_seedN (as slurm/launch.py --sweep and tools/experiment.py name them) or just ROW.
Of its metrics.json the last evaluation counts, if it is that of the last iteration: best checkpoints are
never compared with last ones, and an unfinished run is named, not used.
"""

import json
import math
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mask_former.errors import InputError
from mask_former.evaluation.metrics_file import write_json
from mask_former.training.run_folder import RUN_FILE
from slurm.restarts import read_json, rows_of
from tools._path import ROOT
from tools.evidence.diagnosis import DIAGNOSIS
from tools.evidence.probe import PROBE_FILE

METRICS, CONFIG_FILE, LAUNCH_FILE = "metrics.json", "config.yaml", "launch.json"  # of a run's folder
# Column -> key in metrics.json, 0..100.
METRIC_KEYS = {
    "PQ": "panoptic_seg/PQ",
    "mIoU": "sem_seg/mIoU",
    "iIoU": "sem_seg/iIoU",
    "AP": "segm/AP",
    "context": "context/accuracy",
    "pairwise": "context/pairwise",
    "chance": "context/chance",
    "recall": "context/recall",
}
PAIRED_CONTEXT = re.compile(r"context/(accuracy|pairwise|chance|recall)_(.+)")
RESIDUALS = ("pisr/pixel_residual", "pisr/query_residual")
MOMENTS = 10  # of the residuals over a training that are kept
SEEDED = re.compile(r"(?P<row>.+)_seed(?P<seed>-?\d+)")
KEPT = re.compile(r".+_-?\d+\.json")  # the names that `keep` gives
PROBE_FOLDER = "probe"


@dataclass(frozen=True)
class Result:
    """A finished run, as it is kept."""

    row: str
    seed: int
    iterations: int
    metrics: dict[str, float]  # column -> 0..100
    stages: dict[str, dict[str, float]] = field(default_factory=dict)  # "initial", "swapped" -> metrics
    residuals: dict[str, list[tuple[int, float]]] = field(default_factory=dict)  # name -> (iteration, ratio)
    diagnosis: dict[str, float] = field(default_factory=dict)  # of a probed model: diagnosis.py
    made: dict[str, Any] = field(default_factory=dict)  # revision, command, machine, date, data


def row_and_seed(folder: Path) -> tuple[str, int | None]:
    """What a run folder's name says; None without a seed in it."""
    match = SEEDED.fullmatch(folder.name)
    return (match["row"], int(match["seed"])) if match else (folder.name, None)


def read_run(folder: Path) -> Result | str:
    """The run's result, or why there is none yet; InputError when the folder holds no run."""
    rows = metric_rows(folder / METRICS)
    if not rows and not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: holds no run (neither {METRICS} nor {CONFIG_FILE}); check the path")
    max_iter = _max_iter(folder / CONFIG_FILE)
    evaluations = [row for row in rows if "evaluated" in row]
    steps = [row["iteration"] + 1 for row in rows if "total_loss" in row]
    if not evaluations or evaluations[-1]["iteration"] + 1 < max_iter:
        return f"unfinished at iteration {max(steps, default=0)} of {max_iter}"
    metrics = columns_of(evaluations[-1])
    if not metrics:
        return "its evaluation has no metric of the tables"
    row, seed = row_and_seed(folder)
    start = ([{}] + list(read_json(folder / RUN_FILE).get("starts", [])))[-1]
    probed = read_json(folder / PROBE_FOLDER / PROBE_FILE)  # empty for a model that is not, or not yet
    return Result(
        row=row,
        seed=int(start.get("seed") or 0) if seed is None else seed,
        iterations=max_iter,
        metrics=metrics,
        stages=_stages(probed),
        diagnosis=probed.get(DIAGNOSIS, {}),
        residuals=_residuals(rows),
        made=_made(folder, start),
    )


def metric_rows(file: Path) -> list[dict[str, Any]]:
    """The whole rows of a metrics.json, which a run may be writing; none without the file."""
    rows = rows_of(file.read_bytes()) if file.is_file() else []
    return [row for row in rows if isinstance(row.get("iteration"), int)]


def _max_iter(config: Path) -> int:
    try:
        return int(yaml.safe_load(config.read_bytes())["SOLVER"]["MAX_ITER"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{config}: tells no SOLVER.MAX_ITER, so nobody knows whether the run is finished; leave it out"
        ) from error


def columns_of(flat: Mapping[str, Any]) -> dict[str, float]:
    """Flat metrics of an evaluation -> those of METRIC_KEYS under their short names, and each pair's."""
    found = {name: flat[key] for name, key in METRIC_KEYS.items() if _is_finite(flat.get(key))}
    for key, value in flat.items():
        match = PAIRED_CONTEXT.fullmatch(key)
        if match and _is_finite(value):
            kind = {"accuracy": "context"}.get(match[1], match[1])
            found[f"{kind} {match[2].replace('_', '/')}"] = value
    return found


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _stages(probed: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    return {stage: columns_of(probed[stage]) for stage in probed if stage not in ("final", DIAGNOSIS)}


def _residuals(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """About MOMENTS values, the first and the last among them, of each residual's ratio."""
    found = {}
    steps = list(rows)
    for key in RESIDUALS:
        values = [(row["iteration"] + 1, float(row[key])) for row in steps if _is_finite(row.get(key))]
        if values:
            last = len(values) - 1
            places = sorted({round(last * part / (MOMENTS - 1)) for part in range(MOMENTS)})
            found[key.split("/")[1]] = [values[place] for place in places]
    return found


def _made(folder: Path, start: Mapping[str, Any]) -> dict[str, Any]:
    """What the tables tell of how the run came about; no path and no host's name."""
    git = start.get("git") or {}
    gpus = start.get("gpus") or []
    launch = read_json(folder / LAUNCH_FILE)
    words, clone = shlex.split(str(start.get("command", ""))), ROOT
    if launch.get("config"):  # a job's own command says nothing: it unpacks what launch.json tells
        clone = _clone_of(Path(launch["config"]))
        words = ["tools/train_net.py", "--config-file", launch["config"], *launch.get("overrides", [])]
    return {
        "revision": git.get("revision"),
        "uncommitted": bool(git.get("dirty")),
        "command": shlex.join(_without_machine(str(word), clone) for word in words),
        "machine": ", ".join(gpus) or f"CPU, {start.get('cpus', 'unknown')} core(s)",
        "torch": start.get("torch"),
        "date": str(start.get("time", ""))[:10],
        "data": str(start.get("data_checksum") or "")[:12],
    }


def _clone_of(config: Path) -> Path:
    """The root of the clone whose configuration this is: its path from there leads to one here, too."""
    roots = reversed(config.parents)
    return next((root for root in roots if (ROOT / config.relative_to(root)).is_file()), ROOT)


def _without_machine(word: str, clone: Path) -> str:
    """A path as the repository names it, or its last part; other words as they are."""
    path = Path(word)
    if not path.is_absolute():
        return word
    return str(path.relative_to(clone)) if path.is_relative_to(clone) else path.name


def keep(result: Result, folder: Path) -> Path:
    """Write ROW_SEED.json; returns its path."""
    path = folder / f"{result.row}_{result.seed}.json"
    write_json(asdict(result), path)
    return path


def read_kept(file: Path) -> Result:
    """A file of `keep`; InputError when it is none."""
    try:
        content = json.loads(file.read_bytes())
        residuals = {
            name: [(int(i), float(v)) for i, v in points] for name, points in content["residuals"].items()
        }
        return Result(**{**content, "residuals": residuals})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: is no result that was kept ({type(error).__name__}); write it again"
        ) from error


def read_all(paths: Iterable[Path]) -> tuple[list[Result], dict[str, str]]:
    """Results of run folders, kept files, and folders of either; and why others have none, by name.

    InputError when a path holds neither, or two results are of one row and seed.
    """
    results: list[Result] = []
    unfinished: dict[str, str] = {}
    for path in (one for given in paths for one in _members(given)):
        found = read_kept(path) if path.suffix == ".json" else read_run(path)
        if isinstance(found, str):
            unfinished[path.name] = found
            continue
        if any((found.row, found.seed) == (other.row, other.seed) for other in results):
            raise InputError(f"{path}: a second result of {found.row}, seed {found.seed}; name one of them")
        results.append(found)
    return results, unfinished


def _members(path: Path) -> list[Path]:
    """The run folders and kept files that a path stands for."""
    if path.is_file() or (path / METRICS).is_file() or (path / CONFIG_FILE).is_file():
        return [path]
    inside = sorted(path.glob("*.json")) + sorted(file.parent for file in path.glob(f"*/{CONFIG_FILE}"))
    inside = [one for one in inside if one.is_dir() or KEPT.fullmatch(one.name)]
    if not inside:
        raise InputError(f"{path}: holds neither runs nor results that were kept; check the path")
    return inside
