"""What the folders of two runs tell: training curves, how the configurations differ, what made them."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mask_former.training.run_folder import RUN_FILE, flat
from pisr_maskformer.visualization.curves import Curve

METRICS = "metrics.json"
# What is drawn: the sum of the first of these sets of keys that a row has. The loss is that of the prediction
# that counts, since total_loss has more parts with PISR than without.
CURVES: dict[str, tuple[tuple[str, ...], ...]] = {
    "loss of the final prediction": (
        ("loss_ce_final", "loss_mask_final", "loss_dice_final"),
        ("loss_ce", "loss_mask", "loss_dice"),
    ),
    "PQ": (("panoptic_seg/PQ",),),
    "mIoU": (("sem_seg/mIoU",),),
}
# Not part of what a model is: where it was written, and on what it ran.
KEYS_NOT_SHOWN = frozenset({"OUTPUT_DIR", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS"})


def training_curves(run: Path | None) -> dict[str, Curve]:
    """Iterations and values of each of CURVES that the run's metrics.json has; empty without one."""
    rows = [row for row in _rows(run / METRICS) if _is_number(row.get("iteration"))] if run else []
    curves = {}
    for title, alternatives in CURVES.items():
        points = {
            int(row["iteration"]): math.fsum(row[key] for key in keys)
            for row in rows
            for keys in alternatives[::-1]  # the first, where a row has several, is written last
            if all(_is_number(row.get(key)) for key in keys)
        }
        if points:
            curves[title] = Curve(sorted(points), [points[step] for step in sorted(points)])
    return curves


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # a run that still writes, or was killed
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def config_difference(baseline: str | None, other: str | None) -> list[tuple[str, str, str]] | None:
    """(key, baseline's value, the other's) where two configurations (YAML) differ.

    None when one of them is not known, or cannot be read.
    """
    try:
        first, second = (flat(yaml.safe_load(text)) for text in (baseline or "", other or ""))
    except (yaml.YAMLError, AttributeError):  # not YAML, or not keys with values
        return None
    return [
        (key, _text(first, key), _text(second, key))
        for key in sorted(first.keys() | second.keys())
        if key not in KEYS_NOT_SHOWN and _text(first, key) != _text(second, key)
    ]


def _text(values: Mapping[str, Any], key: str) -> str:
    return str(values[key]) if key in values else "absent"


def provenance(run: Path | None) -> dict[str, str]:
    """What made the run, from the last start in its run.json; empty without one."""
    try:
        starts = json.loads((run / RUN_FILE).read_bytes())["starts"] if run else []
        last = dict(starts[-1]) if starts else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    if not last:
        return {}
    git = last.get("git") or {}
    changed = ", with uncommitted changes" if git.get("dirty") else ""
    told = {
        "revision": f"{git.get('revision') or 'unknown'}{changed}",
        "seed": last.get("seed"),
        "data": last.get("data_checksum"),
        "started": last.get("time"),
        "starts": len(starts),
        "processes": last.get("world_size"),
        "torch": last.get("torch"),
        "GPUs": ", ".join(last.get("gpus") or []) or "none",
    }
    return {name: str(value) for name, value in told.items() if value is not None}
