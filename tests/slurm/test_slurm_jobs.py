"""Training on a real Slurm: whatever ends a job, its run goes on as if nothing had been.

Two nodes of four mock GPUs on this machine; the toy configuration made tinier, on the CPU, in processes of
which Slurm believes that they have a GPU each.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, processes_of, running_cluster, wait_until, why_not
from tests.slurm.jobs import (
    ITERATIONS,
    Workplace,
    assert_same_run,
    launch_record,
    log,
    prepare,
    processes_naming,
    starts,
    steps,
)
from tests.slurm.launcher import ROOT

TRAINER, STEP = "mask_former/trainer.py", "        rates = learning_rates(self.step.optimizer)\n"
# A job's first start waits in each step, so that what should hit it in the middle does.
SLOW = "        time.sleep(0 if 'SLURM_RESTART_COUNT' in __import__('os').environ else {seconds})\n"

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(bool(why_not()), reason=why_not())]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def shop(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = prepare(tmp_path_factory.mktemp("workplace"), cluster)
    yield place
    place.launcher.close()


@pytest.fixture(autouse=True)
def clean(cluster: Cluster) -> Iterator[None]:
    yield
    cluster.clear()


@pytest.fixture(scope="module")
def undisturbed(shop: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By the local executor: the same code in real processes, without Slurm."""
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    said = shop.submit(run, "--gpus", "0", "--tasks", "2", "--executor", "local")
    assert "iter: 11" in said  # it is followed
    assert len(steps(run)) == ITERATIONS
    return run


def job_of(run: Path) -> str:
    return launch_record(run)["job"]


def test_usr2_saves_requeues_and_resumes_the_submitted_code(
    shop: Workplace, undisturbed: Path, tmp_path: Path
) -> None:
    """In a folder with spaces and Unicode; the script is the dry run's; the code is edited meanwhile."""
    run = tmp_path / "ein Lauf – é ' $HOME"
    with shop.edited(TRAINER, STEP, SLOW.format(seconds=0.4)):
        dry = shop.submit(run, "--gpus", "2", "--dry-run")
        assert not run.exists()
        shop.submit(run, "--gpus", "2")
    job = job_of(run)
    script = (run / f"slurm/{job}_submission.sh").read_text()
    assert dry.endswith(f"\n\n{script}\n") and "--gpus-per-node=2" in script
    with shop.edited(
        "tools/train_net.py", "import argparse\n", "raise SystemExit('edited after submission')\n"
    ):
        shop.wait_for_rows(run, 5)
        assert re.search("gpu[=:]2", shop.cluster.job(job)["TresPerNode"])
        shop.cluster.run("scancel", "--signal=USR2", job)
        assert shop.wait_for_state(job, "COMPLETED", "FAILED")["JobState"] == "COMPLETED", log(run)[-3000:]
    (stopped,) = re.findall(r"stopped on request after iteration (\d+) \(SIGUSR2\): requeueing", log(run))
    first, second = starts(run)
    assert second["start_iteration"] == int(stopped) + 1
    assert shop.cluster.job(job)["Restarts"] == "1"
    head = subprocess.check_output(["git", "-C", str(shop.code), "rev-parse", "HEAD"], text=True, timeout=20)
    assert first["git"]["revision"] == second["git"]["revision"] == head.strip()
    patch = (run / "provenance" / first["git"]["diff"]).read_text()
    assert "+        time.sleep(" in patch and "edited after submission" not in patch
    assert second["git"]["diff"] == first["git"]["diff"]
    assert_same_run(run, undisturbed)


def test_two_nodes_with_two_processes_each(shop: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shop.submit(run, "--gpus", "4", "--nodes", "2", "--wait", SOLVER__MAX_ITER="2")
    assert "4 process(es) on node1, node2 work together" in log(run), log(run)[-3000:]
    assert json.loads((run / "finished.json").read_text())["max_iter"] == 2
    assert len(steps(run)) == 2 and starts(run)[0]["world_size"] == 4


def test_preempted_by_an_urgent_job_and_then_requeued_by_hand(
    shop: Workplace, undisturbed: Path, tmp_path: Path
) -> None:
    """Preemption comes with SIGUSR2; a requeue by hand does not, and goes back to a checkpoint."""
    run = tmp_path / "run"
    with shop.edited(TRAINER, STEP, SLOW.format(seconds=1.5)):
        shop.submit(run, "--gpus", "2")
    shop.wait_for_rows(run, 2)
    wrap = ["--wrap", "sleep 2", "--output=/dev/null"]
    shop.cluster.run("sbatch", "-p", "urgent", "-N2", "--exclusive", *wrap)
    shop.wait_for_state(job_of(run), "PENDING")
    (stopped,) = re.findall(r"after iteration (\d+) \(SIGUSR2\): requeueing, restart 1 of 10", log(run))
    shop.wait_for_rows(run, 6)
    shop.cluster.run("scontrol", "requeue", job_of(run))
    shop.wait_for_state(job_of(run), "PENDING")
    shop.wait_for_state(job_of(run), "COMPLETED", "FAILED")
    first, second, third = (start["start_iteration"] for start in starts(run))
    assert (first, second) == (0, int(stopped) + 1) and third >= 4
    assert_same_run(run, undisturbed)


def test_a_node_is_given_up_while_the_old_copy_still_writes(
    shop: Workplace, undisturbed: Path, tmp_path: Path
) -> None:
    """Its slurmd is stopped first, so that nothing ends the old copy but the lease; it is a slow one."""
    run = tmp_path / "run"
    with shop.edited(TRAINER, STEP, SLOW.format(seconds=3)):
        shop.submit(run, "--gpus", "2")
    shop.wait_for_rows(run, 2)
    node = shop.cluster.job(job_of(run))["NodeList"]
    old = json.loads((run / "run.lease").read_text())
    daemon = shop.cluster.daemons[node]
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        shop.cluster.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        wait_until(lambda: json.loads((run / "run.lease").read_text()) != old, 90)
        new = json.loads((run / "run.lease").read_text())
        assert (new["job"], new["restart"]) == (old["job"], 1) and new["host"] != old["host"] == node
        wait_until(lambda: not Path(f"/proc/{old['pid']}").exists(), 15)
        shop.wait_for_state(job_of(run), "COMPLETED", "FAILED")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert f"taking the run over from restart 0 on host {node}" in log(run)
    assert_same_run(run, undisturbed)


def test_a_rank_that_raises_ends_the_job_with_every_trace(shop: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    breaks = (
        "        if self.iter == 1 and comm.get_rank() == 1:\n            raise ValueError('rank 1 breaks')\n"
    )
    with shop.edited(TRAINER, STEP, breaks):
        shop.submit(run, "--gpus", "2")
    traces = run / "traces" / job_of(run)
    wait_until(lambda: (traces / "rank_1_restart_0.txt").exists(), 90)
    raised = time.monotonic()
    shop.wait_for_state(job_of(run), "FAILED", "COMPLETED", "NODE_FAIL")
    assert time.monotonic() - raised < 15
    assert "ValueError: rank 1 breaks" in (traces / "rank_1_restart_0.txt").read_text()
    assert "on_step" not in (other := (traces / "rank_0_restart_0.txt").read_text()) and "trainer.py" in other
    job = shop.cluster.job(job_of(run))
    assert job["JobState"] == "FAILED" and job["Restarts"] == "0"


def test_a_process_that_is_killed_fails_the_job(shop: Workplace, tmp_path: Path) -> None:
    """As the kernel does when memory is short: no trace, and Slurm sends SIGTERM to the others."""
    run = tmp_path / "run"
    kills = (
        "        if self.iter == 2 and comm.get_rank() == 1:\n"
        "            __import__('os').kill(__import__('os').getpid(), 9)\n"
        "        if self.iter == 2:  # as in an evaluation\n"
        "            with self.stop.may_interrupt(1):\n"
        "                time.sleep(60)\n"
    )
    with shop.edited(TRAINER, STEP, kills):
        shop.submit(run, "--gpus", "2")
    job = shop.wait_for_state(job_of(run), "FAILED", "COMPLETED", "NODE_FAIL")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert "(SIGTERM), though the job is neither preempted nor near its time limit: a process" in log(run)


def test_a_cancelled_job_saves_and_stays_cancelled(shop: Workplace, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with shop.edited(TRAINER, STEP, SLOW.format(seconds=0.4)):
        shop.submit(run, "--gpus", "2")
    shop.wait_for_rows(run, 3)
    assert "belongs to job" in shop.submit(run, "--gpus", "2", expect=2)  # in use
    shop.cluster.run("scancel", job_of(run))
    job = shop.wait_for_state(job_of(run), "CANCELLED")
    assert job["Restarts"] == "0"
    wait_until(lambda: not processes_naming(str(run)), 20)
    last = steps(run)[-1]["iteration"]
    assert last < ITERATIONS - 1
    assert (run / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    assert f"after iteration {last} (SIGTERM): Slurm ends the job" in log(run)
    assert shop.cluster.job(job_of(run))["JobState"] == "CANCELLED"


def test_a_time_limit_and_no_restart_left_fail_with_a_line(shop: Workplace, tmp_path: Path) -> None:
    """Slurm sends the signal at the time asked for, or up to half a minute earlier."""
    run = tmp_path / "run"
    said = shop.submit(
        run, "--gpus", "1", "--time", "4", "--grace", "20", "--max-restarts", "0", SOLVER__MAX_ITER="100000"
    )
    # a limit that leaves no two minutes is refused at submission: it is shortened afterwards
    shop.cluster.run("scontrol", "update", f"jobid={job_of(run)}", "timelimit=1")
    assert "warning: --max-restarts 0 is too few" in said
    job = shop.wait_for_state(job_of(run), "FAILED", "TIMEOUT", "COMPLETED", seconds=100)
    assert job["JobState"] == "FAILED"
    assert "not requeued: restart 0 was the last of --max-restarts 0; to go on, submit again" in log(run)
    last = steps(run)[-1]["iteration"]
    assert (run / "last_checkpoint").read_text() == f"model_{last:07d}.pth"


def test_a_sweep_of_two_configs_and_two_seeds_is_completed_by_the_same_command(
    shop: Workplace, tmp_path: Path
) -> None:
    """One of the four is killed; submitted again, the sweep runs that one alone."""
    root = tmp_path / "sweep"
    names = ("maskformer_tiny", "maskformer_tiny_pisr")
    configs = [str(shop.code / f"configs/toy/{name}.yaml") for name in names]
    folders = [root / f"{name}_seed{seed}" for name in names for seed in (0, 5)]
    sweep = ("--sweep", *configs, "--seeds", "0", "5", "--gpus", "1", "--parallel", "2")
    tiny = {"SOLVER__MAX_ITER": "3"}
    shop.submit(root, *sweep, **tiny)
    array = job_of(folders[0]).split("_")[0]
    assert [job_of(folder) for folder in folders] == [f"{array}_{number}" for number in range(4)]
    shop.wait_for_state(f"{array}_3", "RUNNING")
    shop.cluster.run("scancel", "--signal=KILL", f"{array}_3")
    wait_until(lambda: not shop.cluster.run("squeue", "-h", "-j", array).strip(), 120)
    assert [(folder / "finished.json").exists() for folder in folders] == [True, True, True, False]
    said = shop.submit(root, *sweep, **tiny)
    assert said.count("finished: ") == 3
    shop.wait_for_state(job_of(folders[3]), "COMPLETED", "FAILED")
    assert all((folder / "finished.json").exists() for folder in folders)
    seeds = [start["seed"] for folder in folders for start in starts(folder)]
    assert seeds == [0, 5, 0, 5]
    assert "nothing to submit" in shop.submit(root, *sweep, **tiny)
    code, said = shop.launcher("--all", "--root", str(tmp_path), "--json", script="status")
    assert code == 0 and [one["state"] for one in json.loads(said)] == ["finished"] * 4


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--partition", "nowhere"), "no such partition; choose one of: main, urgent"),
        (("--gpus", "8"), "those of partition main have 4; try --nodes 2"),
        (("--gpus", "12", "--nodes", "3"), "--nodes 3, but partition main has 2 with 4 GPUs"),
        (("--profile", "unheard"), "--profile unheard: no such file"),
        (("--gpus", "3"), "SOLVER.IMS_PER_BATCH 4 cannot be dealt to 3 processes"),
        (("--qos", "unheard", "--slurm", "licenses=none:1"), "Slurm refuses the job: "),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_queued(
    shop: Workplace, tmp_path: Path, flags: tuple[str, ...], said: str
) -> None:
    answer = shop.submit(tmp_path / "run", *flags, expect=2)
    (line,) = [line for line in answer.splitlines() if line.startswith("error: ")]
    assert said in line
    assert not shop.cluster.run("squeue", "-h").strip()


def test_a_bad_configuration_is_refused_before_it_is_queued(shop: Workplace, tmp_path: Path) -> None:
    answer = shop.submit(tmp_path / "run", expect=2, SOLVER__MAX_ITR="3")
    assert "unknown configuration key SOLVER.MAX_ITR" in answer and not (tmp_path / "run").exists()
    code, said = shop.launcher("--config", str(tmp_path / "none.yaml"))
    assert code == 2 and "none.yaml" in said and said.count("\n") == 1
    assert not shop.cluster.run("squeue", "-h").strip()


def test_no_daemon_outlives_tests_that_are_killed() -> None:
    code = (
        "import time\nfrom tests.slurm.cluster import running_cluster\n"
        "with running_cluster(nodes=1) as cluster:\n    print(cluster.folder, flush=True)\n    time.sleep(60)"
    )
    tests = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert tests.stdout
    folder = Path(tests.stdout.readline().strip())
    assert len(processes_of(folder)) >= 3
    tests.kill()
    tests.communicate()
    wait_until(lambda: not processes_of(folder) and not folder.exists(), 20)
