"""A sweep: each configuration with each seed, one run folder each; finished runs are not run again."""

import argparse
from pathlib import Path

from mask_former.errors import InputError
from slurm.cluster import is_active, job_state
from slurm.plan import Run
from slurm.restarts import read_json
from slurm.task import FINISHED_FILE
from tools.project import read_config


def sweep_runs(args: argparse.Namespace, root: Path) -> tuple[list[Run], list[str]]:
    """The runs that are still to do, and a line for each that is not; below `root`, NAME_seedN each."""
    configs = [Path(config).absolute() for config in args.sweep]
    names = [config.stem for config in configs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise InputError(
            f"--sweep: two configs are called {twice.pop()}, and would share a folder; rename one"
        )
    runs, skipped = [], []
    for config in configs:
        for seed in args.seeds or [None]:
            overrides = list(args.overrides) + ([] if seed is None else ["SEED", str(seed)])
            folder = root / (config.stem if seed is None else f"{config.stem}_seed{seed}")
            run = Run(folder, config, tuple(overrides), read_config(config, overrides).SOLVER.MAX_ITER)
            if is_finished(run.folder, run.max_iter):
                skipped.append(f"finished: {folder}")
            elif state := active_state(folder):
                skipped.append(f"{state}: {folder}")
            else:
                runs.append(run)
    return runs, skipped


def is_finished(folder: Path, max_iter: int) -> bool:
    """Whether the run has trained and evaluated to this iteration."""
    return read_json(folder / FINISHED_FILE).get("max_iter", -1) >= max_iter


def active_state(folder: Path) -> str | None:
    """Slurm's word for the folder's job, if it runs or waits."""
    launch = read_json(folder / "launch.json")
    job = launch.get("job") if launch.get("executor") == "slurm" else None
    state = job_state(job) if job else None
    return state.lower() if state and is_active(state) else None
