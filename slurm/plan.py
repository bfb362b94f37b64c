"""From the command line, a profile and configurations to everything that a submission needs.

The script that --dry-run prints and the one that is submitted are made from the same Plan by the same
function of submitit.
"""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from mask_former.data.catalog import datasets_root
from mask_former.errors import InputError
from mask_former.training.git_state import CODE
from slurm.cluster import Partition, Profile, parse_minutes, partition_facts
from slurm.ending import granting_lines
from slurm.fitting import check_batch, check_fits, divide, missing_data
from slurm.restarts import SPARE, Estimate, estimate, measured_speed
from slurm.sbatch_keys import FURTHER, more_keys, names_gpus, with_exported
from slurm.snapshot import snapshot_name

LOGS = "slurm"  # folder of the job's scripts and logs
WAIT_SECONDS = 120  # of srun, from the first process's end to the last one's
LEAST_SECONDS = 120  # of a start, before the grace: less would be spent on starting alone
# A signal that comes before Python has its handlers would kill: it is ignored until then, over exec too.
IGNORE_EARLY = """bash -c 'trap "" USR2; exec "$@"' -"""
# Flags with a key in the profile.
PASSED = ("partition", "account", "qos", "constraint", "mem", "cpus_per_task")


@dataclass(frozen=True)
class Run:
    """One training run: its folder, and what it trains."""

    folder: Path
    config: Path  # as given
    overrides: tuple[str, ...]
    max_iter: int


@dataclass(frozen=True)
class Plan:
    """A submission: one run, or several as a job array."""

    name: str
    runs: tuple[Run, ...]
    root: Path  # the run's folder, or the one above those of a sweep: code and job logs lie here
    gpus: int
    nodes: int
    tasks_per_node: int
    python: str
    flags: tuple[str, ...]  # of tools/train_net.py
    parameters: dict[str, Any]  # of the sbatch script, in submitit's names
    code: Path
    limit_minutes: int | None
    max_restarts: int
    patience: float  # seconds for the processes to meet
    restarts: Estimate
    pass_env: tuple[str, ...]  # variables that sbatch hands over
    warnings: tuple[str, ...]

    @property
    def is_array(self) -> bool:
        return len(self.runs) > 1

    @property
    def logs(self) -> Path:
        return self.root / LOGS

    def sbatch_script(self) -> str:
        """The text that sbatch gets."""
        command = f"{self.python} -u -m submitit.core._submit {shlex.quote(str(self.logs))}"
        count: dict[str, Any] = {"map_count": len(self.runs)} if self.is_array else {}
        return _make_sbatch_string(command=command, folder=self.logs, **self.parameters, **count)


def make_plan(args: argparse.Namespace, profile: Profile, root: Path, runs: Sequence[Run]) -> Plan:
    """The plan of a command line; asks Slurm what it has, where there is one.

    InputError when the numbers do not fit each other or the cluster.
    """
    nodes, tasks_per_node = divide(args, profile)
    asked = {key: getattr(args, key) or getattr(profile, key) for key in PASSED}
    partition = partition_facts(asked["partition"]) if args.executor == "slurm" else None
    check_fits(partition, args.gpus, nodes, tasks_per_node)
    for run in runs:
        check_batch(run.config, run.overrides, nodes * tasks_per_node)
    time = args.time or profile.time
    limit = (parse_minutes(time) or None) if time else partition.minutes if partition else None
    _check_limit(limit, args.grace)
    needed = _restarts(runs, limit, args)
    max_restarts, spare = args.max_restarts, ""
    if max_restarts is None:
        max_restarts = (needed.needed or 0) + SPARE
        spare = f" and {SPARE} spare, since preemptions and failing nodes count too"
    code = root / "code" / snapshot_name()
    name = args.name or runs[0].config.stem
    return Plan(
        name=name,
        runs=tuple(runs),
        root=root,
        gpus=args.gpus,
        nodes=nodes,
        tasks_per_node=tasks_per_node,
        python=f"{IGNORE_EARLY} {profile.python or shlex.quote(sys.executable)}",
        flags=("--auto-scale", "--lr-rule", args.lr_rule) if args.auto_scale else (),
        parameters={
            **_parameters(args, profile, asked, name, code, nodes, tasks_per_node, partition),
            "teardown": granting_lines(root / LOGS),
        },
        code=code,
        limit_minutes=limit,
        max_restarts=max_restarts,
        patience=args.patience,
        restarts=replace(needed, explanation=needed.explanation + spare),
        pass_env=tuple(profile.pass_env),
        warnings=(
            *_warnings(root, needed, max_restarts, profile),
            *missing_data(runs[0].config, runs[0].overrides),
        ),
    )


def _parameters(
    args: argparse.Namespace,
    profile: Profile,
    asked: dict[str, Any],
    name: str,
    code: Path,
    nodes: int,
    tasks_per_node: int,
    partition: Partition | None,
) -> dict[str, Any]:
    """submitit's names; what only sbatch knows goes to its additional_parameters."""
    more: dict[str, Any] = {
        "requeue": True,
        **more_keys(args.slurm, profile.slurm, args.gpus, tasks_per_node),
    }
    flags = {key: getattr(args, key.replace("-", "_")) for key in FURTHER}
    more |= {key: value for key, value in flags.items() if value}
    if asked.pop("mem"):
        more["mem"] = args.mem or profile.mem
    if "export" in more:
        more["export"] = with_exported(str(more["export"]), profile.pass_env)
    cpus = int(asked.pop("cpus_per_task") or 0) or _cpus(args.gpus, tasks_per_node, partition)
    time = args.time or profile.time
    parameters = {
        "job_name": name,
        **asked,
        "time": parse_minutes(time) if time else None,
        "nodes": nodes,
        "ntasks_per_node": tasks_per_node,
        "gpus_per_node": tasks_per_node if args.gpus and not names_gpus(more) else None,
        "cpus_per_task": cpus,
        "signal_delay_s": args.grace,
        "setup": _setup(profile, code),
        "stderr_to_stdout": True,
        "additional_parameters": more,
        # srun does not take the batch job's CPUs a task over by itself, and would take over an SBATCH_EXPORT.
        "srun_args": [
            "--kill-on-bad-exit=1",
            f"--wait={WAIT_SECONDS}",
            f"--cpus-per-task={cpus}",
            "--distribution=block",
            "--export=ALL",
        ],
        "wckey": None,
        "array_parallelism": args.parallel,
    }
    return {key: value for key, value in parameters.items() if value is not None or key in ("time", "wckey")}


def _cpus(gpus: int, tasks_per_node: int, partition: Partition | None) -> int:
    """CPUs of a process: with a GPU 8, or its share of a node that has fewer."""
    if not gpus:
        return 1
    fitting = [node.cpus for node in partition.nodes if node.gpus >= tasks_per_node] if partition else []
    return max(1, min(8, min(fitting) // tasks_per_node)) if fitting else 8


def _setup(profile: Profile, code: Path) -> list[str]:
    """Shell lines of the job: it stands in the copy of the code, so that no other code comes first."""
    data = _export("DETECTRON2_DATASETS", str(datasets_root().absolute()))  # the profile's own goes before it
    exports = [_export(name, value) for name, value in profile.env.items()]
    path = f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}"
    after = "set +e  # the lines after srun need its exit code"
    return [data, *profile.setup, *exports, path, f"cd {shlex.quote(str(code))}", after]


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _check_limit(minutes: int | None, grace: int) -> None:
    if minutes is not None and 60 * minutes - grace < LEAST_SECONDS:
        raise InputError(
            f"the time limit of {minutes} min leaves less than {LEAST_SECONDS // 60} min before the "
            f"{grace} s of --grace: give a longer --time, or a shorter --grace"
        )


def _restarts(runs: Sequence[Run], limit: int | None, args: argparse.Namespace) -> Estimate:
    """Of the longest run."""
    estimates = []
    for run in runs:
        seconds, source = measured_speed(run.folder, str(run.config), args.gpus)
        if args.seconds_per_iteration:
            seconds, source = args.seconds_per_iteration, "given"
        estimates.append(estimate(run.max_iter, limit, args.grace, seconds, source))
    return max(estimates, key=lambda one: one.needed or 0)


def _warnings(root: Path, needed: Estimate, max_restarts: int, profile: Profile) -> tuple[str, ...]:
    warnings = [
        f"pass_env: {name} is not set here, so the job will not have it"
        for name in profile.pass_env
        if name not in os.environ
    ]
    if needed.needed is not None and max_restarts < needed.needed:
        warnings.append(
            f"--max-restarts {max_restarts} is too few: {needed.explanation}; the job would end early"
        )
    local = [folder for folder in ("/tmp", "/var/tmp", "/dev/shm") if root.is_relative_to(folder)]
    if local:
        warnings.append(
            f"{root} lies in {local[0]}, which nodes seldom share: choose another --run-dir if so"
        )
    return tuple(warnings)


def run_folder(args: argparse.Namespace, config: Path) -> Path:
    """--run-dir, or runs/NAME_TIME beside the code."""
    if args.run_dir:
        folder = Path(args.run_dir).expanduser().absolute()
    else:
        folder = CODE / "runs" / f"{args.name or config.stem}_{datetime.now():%Y-%m-%d_%H%M%S}"
    if re.search(r'[%"\\\n]', str(folder)):
        raise InputError(f'--run-dir {folder}: Slurm cannot write logs below a path with %, ", \\; rename it')
    return folder
