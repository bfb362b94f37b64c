"""One run of a plan: where it lies, what it still needs, and the command for that.

A run is trained by slurm/launch.py, so that it can be stopped by anything and goes on; then, where a row asks
for other stages of its model, it is probed. All that is known about it lies in its folder.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode

from mask_former.data.catalog import datasets_root
from mask_former.errors import InputError
from slurm.submission import is_locked
from slurm.sweep import active_state
from tools._path import ROOT
from tools.comparison.runs import config_difference
from tools.evidence.plan import Plan
from tools.evidence.probe import PROBE_FILE
from tools.evidence.results import CONFIG_FILE, PROBE_FOLDER, Result, read_run
from tools.project import read_config

TRAIN, PROBE = "train", "probe"


@dataclass(frozen=True)
class Launch:
    """How runs are started."""

    executor: str  # "local" or "slurm"
    gpus: int
    more: tuple[str, ...] = ()  # further arguments of slurm/launch.py


@dataclass(frozen=True)
class Job:
    """A run, and what it has to become."""

    name: str  # ROW_seedN
    row: str
    folder: Path
    config: Path
    overrides: tuple[str, ...]
    max_iter: int
    after: Path | None  # the folder of the run whose weights it starts from
    probed: bool

    def next_step(self) -> str | None:
        """TRAIN, PROBE, or None when all is done."""
        if not is_trained(self.folder):
            return TRAIN
        return PROBE if self.probed and not (self.folder / PROBE_FOLDER / PROBE_FILE).is_file() else None

    def is_ready(self) -> bool:
        """Whether what it starts from is there."""
        return self.after is None or is_trained(self.after)

    def runs_elsewhere(self) -> str | None:
        """Who works on it, if somebody does: a process of this machine, or Slurm's word for its job."""
        return "running" if is_locked(self.folder) else active_state(self.folder)

    def command(self, step: str, launch: Launch) -> list[str]:
        """The command that does a step."""
        if step == TRAIN:
            train = ["slurm/launch.py", "--config", str(self.config), "--run-dir", str(self.folder)]
            train += ["--gpus", str(launch.gpus), "--executor", launch.executor, *launch.more]
            return [sys.executable, *train, "--", *self.overrides]
        probe = ["-m", "tools.evidence.probe", "--config-file", str(self.config)]
        probe += [
            "--weights",
            str(self.folder / "model_final.pth"),
            "--output",
            str(self.folder / PROBE_FOLDER),
        ]
        device = [] if launch.gpus else ["MODEL.DEVICE", "cpu"]
        return [sys.executable, *probe, *self.overrides, *device]


def is_trained(folder: Path) -> bool:
    """Whether the folder holds a run with its last evaluation."""
    return (folder / CONFIG_FILE).is_file() and isinstance(read_run(folder), Result)


def jobs_of(plan: Plan, rows: Sequence[str] = ()) -> list[Job]:
    """All runs of a plan, or those that `rows` need, seed by seed, so that an early table has all rows.

    InputError when a configuration does not fit, or a folder holds a run of another one.
    """
    needed = plan.needed(rows or list(plan.rows))
    jobs = []
    for seed in plan.seeds:
        for row in plan.trained:
            if row.name not in needed:
                continue
            assert row.config is not None
            overrides = plan.overrides(row, seed)
            if "OUTPUT_DIR" in overrides[::2]:
                raise InputError(f"row {row.name}: OUTPUT_DIR is the plan's business; set its `root` instead")
            cfg = read_config(row.config, overrides)
            folder = plan.folder(row.name, seed)
            _require_same(folder, cfg)
            jobs.append(
                Job(
                    name=folder.name,
                    row=row.name,
                    folder=folder,
                    config=row.config,
                    overrides=tuple(overrides),
                    max_iter=cfg.SOLVER.MAX_ITER,
                    after=plan.folder(row.weights_of, seed) if row.weights_of else None,
                    probed=row.name in plan.probed,
                )
            )
    return jobs


def _require_same(folder: Path, wanted: CfgNode) -> None:
    """A run that is there must be the one that the plan means: half of another schedule is no run of it.

    A key that is newer than the run has its default there.
    """
    file = folder / CONFIG_FILE
    if not file.is_file():
        return
    found = config_difference(read_config(file).dump(), wanted.dump()) or []
    different = [change for change in found if not _is_moved_run(*change)]
    if different:
        key, before, now = different[0]
        raise InputError(
            f"{folder} holds a run with {key} {before}, and the plan says {now}: delete that folder, or give "
            "the plan another `root`"
        )


def _is_moved_run(key: str, before: str, now: str) -> bool:
    """Whether all that differs is where the project lies, whose run the weights come from."""
    return key == "MODEL.WEIGHTS" and Path(before).parts[-2:] == Path(now).parts[-2:]


def environment(plan: Plan, launch: Launch) -> Mapping[str, str]:
    """Of the runs: the plan's data, the repository's code, and on this machine one thread each."""
    variables = dict(os.environ)
    variables["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [variables.get("PYTHONPATH")])])
    variables["DETECTRON2_DATASETS"] = str(_datasets(plan))
    if launch.executor == "local":
        variables.setdefault("OMP_NUM_THREADS", "1")
    return variables


def _datasets(plan: Plan) -> Path:
    return plan.datasets or datasets_root().absolute()


def prepare_command(plan: Plan) -> Sequence[str] | None:
    """What comes before the runs; `{datasets}` in it is the folder of the data sets, `{root}` the plan's."""
    if not plan.prepare:
        return None
    datasets = str(_datasets(plan))
    words = (word.replace("{datasets}", datasets).replace("{root}", str(plan.root)) for word in plan.prepare)
    return [sys.executable, *words]
