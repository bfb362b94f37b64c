"""Run a plan: what is missing is trained, what is done is skipped, and it ends with the tables.

    python tools/experiment.py plans/toy_relations.yaml --estimate           # hours and memory, nothing else
    python tools/experiment.py plans/toy_relations.yaml --jobs 2             # here, on the CPU, two at a time
    python tools/experiment.py plans/ade20k.yaml --executor slurm --gpus 4 -- --partition gpu
    python tools/experiment.py plans/toy_relations.yaml --rows baseline pisr # some of it
    python tools/experiment.py plans/toy_relations.yaml --tables             # of what is done so far

What comes after `--` goes to slurm/launch.py as it is. Kill it whenever you like, and call it again: it goes
on. A run that breaks is started again, at most twice in one call; runs of Slurm go on without this tool. The
tables go to the plan's folder (root/tables/NAME), and with --keep the results to
docs/evidence/NAME.
"""

import argparse
import signal
import subprocess
import sys
from collections.abc import Sequence

import _path
from mask_former.errors import InputError, run_cli
from tools.ablation_table import write_tables
from tools.evidence.estimate import estimate, table
from tools.evidence.jobs import Launch, environment, jobs_of, prepare_command
from tools.evidence.plan import Plan, read_plan
from tools.evidence.schedule import Schedule
from tools.project import require_writable


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = arguments.add_argument
    add("plan", help="YAML file: see plans/ and tools/evidence/plan.py")
    add("--executor", choices=("local", "slurm"), default="local", help="(default: local)")
    add("--gpus", type=int, default=0, help="of each run; 0: the CPU, one thread a run (default: 0)")
    add("--jobs", type=int, default=1, help="runs at a time on this machine (default: 1)")
    add(
        "--estimate", action="store_true", help="measure a few iterations of each row, print hours and memory"
    )
    add(
        "--rows",
        nargs="+",
        default=(),
        metavar="ROW",
        help="only these, and what they start from (default: all)",
    )
    add("--iterations", type=int, default=12, help="of --estimate (default: 12)")
    add("--tables", action="store_true", help="only the tables of what is done")
    add("--keep", action="store_true", help="write the results to docs/evidence/NAME")
    arguments.epilog = "arguments after -- are those of slurm/launch.py"
    return arguments


def tables(plan: Plan, keep: bool) -> None:
    """Write and print the tables of the plan's runs."""
    kept = _path.ROOT / "docs" / "evidence" / plan.name if keep else None
    output = plan.root / "tables" / plan.name
    rows = {row.name for row in plan.trained}
    folders = [plan.folder(row, seed) for seed in plan.seeds for row in rows]
    there = [folder for folder in folders if (folder / "config.yaml").is_file()]
    print(write_tables(there, output, plan=plan, baseline="", kept=kept), end="")
    print(f"\nwritten to {output}")


def prepare(plan: Plan, variables: dict[str, str]) -> None:
    """What the plan wants done before its runs; its own words go to the screen."""
    command = prepare_command(plan)
    if command and subprocess.run(command, cwd=_path.ROOT, env=variables).returncode:
        raise InputError(f"the plan's `prepare` failed: {' '.join(command[1:])}; see what it says above")


def run(plan: Plan, args: argparse.Namespace, launch_arguments: tuple[str, ...]) -> int:
    """0 when every run is done."""
    launch = Launch(args.executor, args.gpus, launch_arguments)
    variables = dict(environment(plan, launch))
    jobs = jobs_of(plan, args.rows)
    require_writable(plan.root)
    prepare(plan, variables)
    if args.estimate:
        print(table(estimate(jobs, launch, variables, args.iterations), args.jobs))
        return 0
    left = [job for job in jobs if job.next_step() is not None]
    print(f"{plan.title}: {len(jobs)} runs, {len(jobs) - len(left)} done", flush=True)
    parallel = len(jobs) if args.executor == "slurm" else args.jobs
    schedule = Schedule(jobs, launch, parallel, variables)
    schedule.run()
    tables(plan, args.keep)
    for name, why in schedule.given_up.items():
        print(f"given up: {name}: {why}", file=sys.stderr)
    return 1 if schedule.given_up else 0


def main(arguments: Sequence[str] | None = None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    end = given.index("--") if "--" in given else len(given)
    args = parser().parse_args(given[:end])
    for name, least in (("jobs", 1), ("gpus", 0), ("iterations", 5)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: use at least {least}")
    plan = read_plan(args.plan)
    if args.tables:
        if args.rows:
            raise InputError("--tables shows every row that has been run; leave out --rows")
        tables(plan, args.keep)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, like Ctrl-C
    return run(plan, args, tuple(given[end + 1 :]))


if __name__ == "__main__":
    sys.exit(run_cli(main))
