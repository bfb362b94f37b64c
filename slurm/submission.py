"""Handing a plan to Slurm, or to this machine: folders, the copy of the code, launch.json, submitit."""

import contextlib
import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from submitit import DebugExecutor, LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from mask_former.atomic_write import replace_file
from mask_former.errors import InputError
from mask_former.evaluation.metrics_file import write_json
from mask_former.training.git_state import CODE
from mask_former.training.run_lock import LOCK_FILE, now, refusal_by
from slurm.cluster import is_active, job_state
from slurm.plan import Plan, Run
from slurm.restarts import read_json
from slurm.sbatch_keys import with_exported
from slurm.snapshot import take_snapshot
from slurm.task import TrainingTask
from tools.project import read_config, require_writable

LAUNCH_FILE = "launch.json"
YEAR_MINUTES = 365 * 24 * 60
OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_")
OF_SLURM = ("SLURM_CONF",)
OF_DISTRIBUTED = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def check_free(folder: Path) -> None:
    """InputError when a job or a run uses the folder."""
    launch = read_json(folder / LAUNCH_FILE)
    job = launch.get("job")
    state = job_state(job) if job and launch.get("executor") == "slurm" else None
    if is_active(state):
        raise InputError(
            f"--run-dir {folder} belongs to job {job}, which is {state}; `scancel {job}` it first, or choose "
            "another --run-dir"
        )
    if is_locked(folder):
        raise InputError(refusal_by(folder, called="--run-dir"))


def is_locked(folder: Path) -> bool:
    """Whether a run holds the folder's lock; False where that cannot be found out."""
    try:
        with open(folder / LOCK_FILE, "rb") as file:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def submit(plan: Plan, executor: str) -> list[Any]:
    """submitit's jobs, one a run; they have been submitted, or with debug have ended.

    InputError, with Slurm's words, when it refuses.
    """
    require_writable(plan.root)
    for run in plan.runs:
        require_writable(run.folder)
    if take_snapshot(plan.root / "code") != plan.code:
        raise InputError("the code changed while it was submitted; submit again")
    tokens = [secrets.token_hex(8) for _ in plan.runs]
    tasks = [_task(plan, run, token) for run, token in zip(plan.runs, tokens, strict=True)]
    with _kept_on_failure([run.folder / LAUNCH_FILE for run in plan.runs]):
        records = [_record(plan, run, executor, token) for run, token in zip(plan.runs, tokens, strict=True)]
        if executor == "slurm":
            jobs = _to_slurm(plan, tasks)
        elif executor == "local":
            jobs = [_to_this_machine(plan, tasks)]
    if executor == "debug":
        return [_in_this_process(plan, task) for task in tasks]
    for run, record, job in zip(plan.runs, records, jobs, strict=True):
        write_json({**record, "job": job.job_id}, run.folder / LAUNCH_FILE)
    return jobs


@contextlib.contextmanager
def _kept_on_failure(files: Sequence[Path]) -> Iterator[None]:
    """The files are as they were when the body fails: a refused submission leaves the former one's record."""
    before = {file: file.read_bytes() if file.exists() else None for file in files}
    try:
        yield
    except BaseException:
        for file, content in before.items():
            if content is None:
                file.unlink(missing_ok=True)
            else:
                with replace_file(file) as new:
                    new.write(content)
        raise


def _task(plan: Plan, run: Run, token: str) -> TrainingTask:
    overrides = run.overrides if plan.gpus else (*run.overrides, "MODEL.DEVICE", "cpu")
    return TrainingTask(
        run_dir=str(run.folder),
        config=str(_config_in(plan.code, run)),
        overrides=overrides,
        flags=plan.flags,
        working_directory=os.getcwd(),
        gpus=plan.gpus,
        max_restarts=plan.max_restarts,
        token=token,
        patience=plan.patience,
        grace=plan.parameters["signal_delay_s"],
    )


def _config_in(code: Path, run: Run) -> Path:
    """The configuration in the copy of the code; one from elsewhere is kept in the run's folder, whole."""
    for path in (run.config, run.config.resolve()):
        if path.is_relative_to(CODE) and (code / path.relative_to(CODE)).is_file():
            return code / path.relative_to(CODE)
    kept = run.folder / "submitted.yaml"
    kept.write_text(read_config(run.config, ()).dump())
    return kept


def _record(plan: Plan, run: Run, executor: str, token: str) -> dict[str, Any]:
    """Write launch.json, which the job looks for; the job's id comes when it has one."""
    record = {
        "job": None,
        "token": token,
        "executor": executor,
        "name": plan.name,
        "config": str(run.config),
        "overrides": list(run.overrides),
        "gpus": plan.gpus,
        "nodes": plan.nodes,
        "processes": plan.nodes * plan.tasks_per_node,
        "max_iter": run.max_iter,
        "max_restarts": plan.max_restarts,
        "limit_minutes": plan.limit_minutes,
        "code": str(plan.code),
        "logs": str(plan.logs),
        "submitted": now(),
    }
    write_json(record, run.folder / LAUNCH_FILE)
    return record


def _to_slurm(plan: Plan, tasks: list[TrainingTask]) -> list[Any]:
    try:
        executor = SlurmExecutor(plan.logs, python=plan.python)
        executor.update_parameters(**plan.parameters)
        with _clean_environment(plan.pass_env):
            return list(executor.submit_array(tasks)) if plan.is_array else [executor.submit(tasks[0])]
    except (FailedSubmissionError, FailedJobError, RuntimeError) as error:
        said = re.findall(r"(?:sbatch|salloc): error: (.*)", str(error)) or str(error).splitlines()[-1:]
        raise InputError(f"Slurm refuses the job: {'; '.join(said)}; see --dry-run for the script") from error


@contextlib.contextmanager
def _clean_environment(pass_env: Sequence[str]) -> Iterator[None]:
    """As of a login node: the job must not take over what the job that submits it, if any, is.

    Slurm's own settings stay: SLURM_CONF, and a site's SBATCH_ variables.
    """
    before = dict(os.environ)
    for name in before:
        if (name.startswith(OF_A_JOB) and name not in OF_SLURM) or name in OF_DISTRIBUTED:
            del os.environ[name]
    if "SBATCH_EXPORT" in before:
        os.environ["SBATCH_EXPORT"] = with_exported(before["SBATCH_EXPORT"], pass_env)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _to_this_machine(plan: Plan, tasks: list[TrainingTask]) -> Any:
    if plan.nodes > 1 or plan.is_array:
        raise InputError("--executor local is one run on one machine: leave out --nodes and --sweep")
    executor = LocalExecutor(plan.logs)
    executor.update_parameters(
        tasks_per_node=plan.tasks_per_node,
        gpus_per_node=plan.tasks_per_node if plan.gpus else 0,
        timeout_min=plan.limit_minutes or YEAR_MINUTES,
        signal_delay_s=plan.parameters["signal_delay_s"],
        stderr_to_stdout=True,
    )
    with _standing_in(plan.code):
        return executor.submit(tasks[0])


@contextlib.contextmanager
def _standing_in(code: Path) -> Iterator[None]:
    """As the sbatch script does: processes started here find the copy of the code first."""
    from mask_former.data.catalog import datasets_root

    before, folder = dict(os.environ), os.getcwd()
    os.environ["DETECTRON2_DATASETS"] = str(datasets_root().absolute())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(code), *filter(None, [before.get("PYTHONPATH")])])
    os.chdir(code)
    try:
        yield
    finally:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(before)


def _in_this_process(plan: Plan, task: TrainingTask) -> Any:
    """With the code as it is, so that a debugger stops in the file that is edited."""
    if plan.tasks_per_node * plan.nodes > 1:
        raise InputError("--executor debug is one process: --gpus 1, or --gpus 0 without --tasks")
    job = DebugExecutor(plan.logs).submit(task)
    job.results()
    return job
