"""Handing over to Slurm, with an sbatch that is a shell script."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mask_former.errors import InputError
from slurm import cluster, launch, plan, submission
from slurm.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
PISR = str(ROOT / "configs/ade20k/maskformer_r50_pisr.yaml")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first in PATH with an srun and an sbatch, which writes down its environment."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, line in (("srun", "exit 0"), ("sbatch", f"env > {tmp_path}/env; echo Submitted batch job 7")):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(plan, "partition_facts", lambda name: None)
    monkeypatch.setattr(cluster, "ask", lambda *command: None)
    monkeypatch.setattr(submission, "take_snapshot", lambda folder: folder / plan.snapshot_name())
    return folder


def planned(run: Path, *arguments: str) -> Plan:
    args = launch.parser().parse_args(["--config", PISR, "--run-dir", str(run), *arguments])
    made = launch.plan_of(args)
    assert made is not None
    return made


def test_a_job_that_submits_another_does_not_hand_over_what_it_is(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("pass_env: [KEY]\n")
    given = {"SLURM_JOB_ID": "5", "SLURM_CONF": "/conf", "SRUN_CPUS": "1", "RANK": "3", "KEY": "secret"}
    for name, value in (given | {"SBATCH_ACCOUNT": "a", "SBATCH_EXPORT": "NONE"}).items():
        monkeypatch.setenv(name, value)
    (job,) = submission.submit(planned(tmp_path / "run", "--profile", str(profile)), "slurm")
    assert job.job_id == "7" and json.loads((tmp_path / "run/launch.json").read_text())["job"] == "7"
    seen = set((tmp_path / "env").read_text().splitlines())
    assert {"SLURM_CONF=/conf", "SBATCH_ACCOUNT=a", "SBATCH_EXPORT=KEY", "KEY=secret"} <= seen
    assert not any(line.startswith(("SLURM_JOB_ID=", "SRUN_", "RANK=")) for line in seen)
    assert os.environ["SLURM_JOB_ID"] == "5"
    assert "secret" not in (tmp_path / "run/slurm/7_submission.sh").read_text()


@pytest.mark.parametrize("former", ['{"job": "6", "token": "t"}\n', None])
def test_a_refused_job_leaves_the_former_ones_record(
    programs: Path, tmp_path: Path, former: str | None
) -> None:
    record = tmp_path / "run/launch.json"
    record.parent.mkdir()
    if former:
        record.write_text(former)
    (programs / "sbatch").write_text("#!/bin/sh\necho sbatch: error: no such account >&2\nexit 1\n")
    with pytest.raises(InputError, match="Slurm refuses the job: no such account"):
        submission.submit(planned(tmp_path / "run"), "slurm")
    assert (record.read_text() if record.exists() else None) == former


def test_a_folder_that_a_run_writes_is_refused_with_its_holder(tmp_path: Path) -> None:
    """Also where a server keeps the lock of a host that is gone."""
    hold = (
        "import sys, time\nfrom mask_former.training.run_lock import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(60)"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", hold, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert run.stdout and run.stdout.readline() == "held\n"
        path = tmp_path / "run.lock"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "node9"}))
        with pytest.raises(InputError) as refused:
            submission.check_free(tmp_path)
    finally:
        run.kill()
        run.communicate()
    assert str(refused.value).startswith(
        f"--run-dir {tmp_path} is being written by pid {run.pid} on host node9"
    )
    assert str(refused.value).endswith(
        f"another --run-dir (if node9 is down for good, {path} may be removed)"
    )


def test_without_srun_it_is_told_in_one_line(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = planned(tmp_path / "run")
    (programs / "srun").unlink()
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(InputError, match='Slurm refuses the job: Could not detect "srun"'):
        submission.submit(made, "slurm")


def test_code_that_changes_meanwhile_is_not_submitted(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "take_snapshot", lambda folder: folder / "other")
    with pytest.raises(InputError, match="the code changed while it was submitted; submit again"):
        submission.submit(planned(tmp_path / "run"), "slurm")
    assert not (tmp_path / "run/launch.json").exists()
