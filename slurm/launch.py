"""Submit training to Slurm: one command, from a configuration to a run that comes back until it is done.

    python slurm/launch.py --config configs/ade20k/maskformer_r50_pisr.yaml --gpus 4
    python slurm/launch.py --config F --gpus 8 --nodes 2 --time 1-00:00:00 --partition gpu -- LOG.PERIOD 50
    python slurm/launch.py --config F --gpus 4 --dry-run
    python slurm/launch.py --config F --gpus 0 --executor local --run-dir runs/mine
    python slurm/launch.py --sweep configs/ablations/*.yaml --seeds 0 1 2 --gpus 4 --run-dir runs/ablations

The same command with the same --run-dir goes on where a run ended. docs/slurm.md tells the rest.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import _root  # noqa: F401  (puts the repository's root on sys.path)

from mask_former.errors import InputError, run_cli
from mask_former.training.scaling import RULES
from slurm.cluster import has_slurm, load_profile
from slurm.follow import follow, wait_for_end
from slurm.plan import Plan, Run, make_plan, run_folder
from slurm.submission import check_free, submit
from slurm.sweep import sweep_runs
from tools.project import read_config

SIGNAL_VARIABLE = "SUBMITIT_PREEMPT_SIGNAL"  # of submitit, which would send another signal before the end


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("--config", help="YAML file of the run")
    add("--sweep", nargs="+", default=[], metavar="CONFIG", help="several configs, as one job array")
    add("--seeds", nargs="+", type=int, default=[], help="of a sweep: each config is trained with each")
    add("--parallel", type=_count, default=256, help="of a sweep: how many run at a time (default: 256)")
    add("--gpus", type=_number, default=1, help="in all, split over the nodes; 0: on the CPU (default: 1)")
    add("--nodes", type=_count, help="(default: 1, or what the profile's gpus_per_node asks for)")
    add("--tasks", type=_count, help="with --gpus 0: processes in all (default: one a node)")
    add("--run-dir", help="everything of the run goes there (default: runs/NAME_TIME)")
    add("--name", help="of the job (default: the config's)")
    add("--max-restarts", type=_number, help="(default: what time limit and speed ask for, and some more)")
    add("--seconds-per-iteration", type=float, help="for that (default: measured in this or a like run)")
    add("--grace", type=_count, default=90, help="seconds to save in before a time limit (default: 90)")
    add("--patience", type=float, default=120.0, help="seconds for the processes to meet (default: 120)")
    add("--profile", help="what is particular to the cluster: a name or YAML file (see slurm/profiles)")
    add("--auto-scale", action="store_true", help="as in tools/train_net.py")
    add("--lr-rule", choices=sorted(RULES), default="linear", help="with --auto-scale")
    for flag in ("partition", "account", "qos", "constraint", "time", "mem", "cpus-per-task", "nodelist"):
        add(f"--{flag}", help="as sbatch takes it")
    for flag in ("exclude", "reservation", "dependency", "mail-type", "mail-user", "comment"):
        add(f"--{flag}", help="as sbatch takes it")
    add("--slurm", action="append", default=[], metavar="KEY=VALUE", help="any other key of sbatch")
    add("--executor", choices=("slurm", "local", "debug"), default="slurm", help="local: on this machine")
    add("--dry-run", action="store_true", help="print the plan and the sbatch script, and do nothing")
    add("--wait", action="store_true", help="until the job has ended; exit code 1 when it has not finished")
    add("--follow", action="store_true", help="show the job's log and progress until it ends")
    add("overrides", nargs="*", metavar="-- KEY VALUE", help="keys of the config with other values")
    return arguments


def _number(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def plan_of(args: argparse.Namespace) -> Plan | None:
    """What to submit; None when every run of a sweep is finished."""
    if os.environ.get(SIGNAL_VARIABLE, "USR2") != "USR2":
        raise InputError(
            f"{SIGNAL_VARIABLE}={os.environ[SIGNAL_VARIABLE]} is not supported: runs listen to SIGUSR2 "
            f"(NCCL may take SIGUSR1); `unset {SIGNAL_VARIABLE}`"
        )
    profile = load_profile(args.profile)
    if bool(args.config) == bool(args.sweep):
        raise InputError(
            "give either --config FILE or --sweep FILES; for a first try: configs/toy/maskformer_tiny.yaml"
        )
    if args.seeds and not args.sweep:
        raise InputError("--seeds goes with --sweep; for one run add `-- SEED 1`")
    if "OUTPUT_DIR" in args.overrides[::2]:
        raise InputError("OUTPUT_DIR is the run's folder: set it by --run-dir")
    root = run_folder(args, Path(args.config or "sweep"))
    if args.sweep:
        runs, skipped = sweep_runs(args, root)
        for line in skipped:
            print(line)
        if not runs:
            return None
    else:
        config = Path(args.config).absolute()
        max_iter = read_config(config, args.overrides).SOLVER.MAX_ITER
        runs = [Run(root, config, tuple(args.overrides), max_iter)]
    return make_plan(args, profile, root, runs)


def show(plan: Plan, args: argparse.Namespace) -> None:
    lines = {
        "executor": args.executor,
        "runs": "\n".join(str(run.folder) for run in plan.runs),
        "config": "\n".join(sorted({str(run.config) for run in plan.runs})),
        "overrides": " ".join(plan.runs[0].overrides) or "none",
        "processes": f"{plan.nodes * plan.tasks_per_node} ({plan.nodes} node(s), {plan.gpus} GPU(s))",
        "code": str(plan.code),
        "restarts": f"at most {plan.max_restarts}; {plan.restarts.explanation}",
    }
    for name, text in lines.items():
        first, *rest = text.splitlines()
        print(f"{name + ':':12}{first}", *(f"{'':12}{line}" for line in rest), sep="\n")


def main(arguments: Sequence[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    plan = plan_of(args)
    if plan is None:
        print("every run is finished: nothing to submit")
        return 0
    show(plan, args)
    for warning in plan.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.dry_run:
        print(f"\n{plan.sbatch_script()}")
        return 0
    if args.executor == "slurm" and not has_slurm():
        raise InputError(
            "there is no Slurm here (no sbatch): call this on the cluster's login node, or train on this "
            "machine by --executor local"
        )
    for run in plan.runs:
        check_free(run.folder)
    jobs = submit(plan, args.executor)
    if args.executor == "debug":
        return 0
    print(f"job:        {', '.join(job.job_id for job in jobs)}\nlogs:       {plan.logs}")
    if args.follow or args.executor == "local":
        return follow(plan, jobs)
    return wait_for_end(plan, jobs) if args.wait else 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
