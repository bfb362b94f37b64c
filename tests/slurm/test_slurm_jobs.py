"""Training on a real Slurm: whatever ends a job, its run goes on as if nothing had been.

Two nodes of four mock GPUs on this machine; the toy configuration made tinier, on the CPU, in processes of
which Slurm believes that they have a GPU each.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
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
ENDLESS = 100000  # iterations
SHARING = ("--cpus-per-task", "1")  # with the default, two GPUs' processes have a node's CPUs for themselves
RAISES = """\
        if self.iter == 1 and comm.get_rank() == 1:
            raise ValueError('rank 1 breaks')
"""
# As the kernel does when memory is short: no trace, and Slurm sends SIGTERM to the others.
KILLS = """\
        if self.iter == 2 and comm.get_rank() == 1:
            __import__('os').kill(__import__('os').getpid(), 9)
        if self.iter == 2:  # as in an evaluation
            with self.stop.may_interrupt(1):
                time.sleep(60)
"""

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
def clean(request: pytest.FixtureRequest, cluster: Cluster) -> None:
    """Nothing runs when a test begins, but for those that look at the jobs of `crowd`."""
    if "crowd" not in request.fixturenames:
        cluster.clear()


@pytest.fixture(scope="module")
def crowd(shop: Workplace, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of jobs that mostly wait, side by side; the one of two nodes has ended."""
    cluster.clear()
    root = tmp_path_factory.mktemp("crowd")
    profile = root / "elsewhere.yaml"
    profile.write_text(f"env: {{DETECTRON2_DATASETS: {root}/unheard}}\n")
    cpus = ("--gpus", "0", "--tasks", "2")
    jobs = {
        "cancelled": (SLOW.format(seconds=1), cpus),
        "limited": (
            SLOW.format(seconds=0.2),
            ("--gpus", "0", "--time", "4", "--grace", "80", "--max-restarts", "0"),
        ),
        "raises": (RAISES, ("--gpus", "2", *SHARING)),
        "killed": (KILLS, cpus),
        "no data": ("", ("--gpus", "0", "--profile", str(profile))),
    }
    for name, (more, flags) in jobs.items():
        endless = {"SOLVER__MAX_ITER": str(ENDLESS)} if name in ("cancelled", "limited") else {}
        with shop.edited(TRAINER, STEP, more):
            said = shop.submit(root / name, *flags, **endless)
        assert ("warning: --max-restarts 0 is too few" in said) == (name == "limited")
    shop.submit(root / "two nodes", "--gpus", "4", "--nodes", "2", *SHARING, "--wait", SOLVER__MAX_ITER="2")
    shorten(shop, root / "limited")
    return {name: root / name for name in (*jobs, "two nodes")}


def shorten(shop: Workplace, run: Path) -> None:
    """The job's time limit, to a minute or two from now: one so short is refused at submission.

    Slurm looks for limits every 30 s, and sends the signal up to half a minute before the time asked for.
    """
    shop.wait_for_rows(run, 1)
    began = datetime.fromisoformat(shop.cluster.job(job_of(run))["StartTime"])
    minutes = math.ceil(((datetime.now() - began).total_seconds() + 50) / 60)
    shop.cluster.run("scontrol", "update", f"jobid={job_of(run)}", f"timelimit={minutes}")


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


def test_a_cancelled_job_saves_and_stays_cancelled(shop: Workplace, crowd: dict[str, Path]) -> None:
    run = crowd["cancelled"]
    shop.wait_for_rows(run, 3)
    assert "belongs to job" in shop.submit(run, "--gpus", "2", expect=2)  # in use
    shop.cluster.run("scancel", job_of(run))
    job = shop.wait_for_state(job_of(run), "CANCELLED")
    assert job["Restarts"] == "0"
    wait_until(lambda: not processes_naming(str(run)), 20)
    last = steps(run)[-1]["iteration"]
    assert last < ENDLESS - 1
    assert (run / "last_checkpoint").read_text() == f"model_{last:07d}.pth"
    assert f"after iteration {last} (SIGTERM): Slurm ends the job" in log(run)
    assert shop.cluster.job(job_of(run))["JobState"] == "CANCELLED"


def test_a_time_limit_and_no_restart_left_fail_with_a_line(shop: Workplace, crowd: dict[str, Path]) -> None:
    run = crowd["limited"]
    job = shop.wait_for_state(job_of(run), "FAILED", "TIMEOUT", "COMPLETED", seconds=100)
    assert job["JobState"] == "FAILED"
    assert "not requeued: restart 0 was the last of --max-restarts 0; to go on, submit again" in log(run)
    last = steps(run)[-1]["iteration"]
    assert (run / "last_checkpoint").read_text() == f"model_{last:07d}.pth"


def test_two_nodes_with_two_processes_each(crowd: dict[str, Path]) -> None:
    run = crowd["two nodes"]
    assert "4 process(es) on node1, node2 work together" in log(run), log(run)[-3000:]
    assert "warning: Slurm does not answer" not in log(run)
    assert json.loads((run / "finished.json").read_text())["max_iter"] == 2
    assert len(steps(run)) == 2 and starts(run)[0]["world_size"] == 4


def test_a_rank_that_raises_ends_the_job_with_every_trace(shop: Workplace, crowd: dict[str, Path]) -> None:
    run = crowd["raises"]
    job = shop.wait_for_state(job_of(run), "FAILED", "COMPLETED", "NODE_FAIL")
    assert job["JobState"] == "FAILED" and job["Restarts"] == "0"
    raised, other = (run / f"traces/{job_of(run)}/rank_{rank}_restart_0.txt" for rank in (1, 0))
    # Other jobs start meanwhile.
    assert datetime.fromisoformat(job["EndTime"]).timestamp() - raised.stat().st_mtime < 25
    assert "ValueError: rank 1 breaks" in raised.read_text()
    assert "on_step" not in other.read_text() and "trainer.py" in other.read_text()


def test_a_process_that_is_killed_fails_the_job(shop: Workplace, crowd: dict[str, Path]) -> None:
    run = crowd["killed"]
    job = shop.wait_for_state(job_of(run), "FAILED", "COMPLETED", "NODE_FAIL")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert "(SIGTERM), though the job is neither preempted nor near its time limit: a process" in log(run)


def test_data_that_a_node_does_not_see_is_told_in_its_log(shop: Workplace, crowd: dict[str, Path]) -> None:
    """The launcher, which sees it, cannot know."""
    run = crowd["no data"]
    job = shop.wait_for_state(job_of(run), "FAILED", "COMPLETED", "NODE_FAIL")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    (line,) = [line for line in log(run).splitlines() if line.startswith("error: ")]
    assert f"{run.parent}/unheard" in line and "(rank 0 on node" in line, line


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


def test_a_sweep_of_two_configs_and_two_seeds_is_completed_by_the_same_command(
    shop: Workplace, tmp_path: Path
) -> None:
    """One of the four is killed; submitted again, the sweep runs that one alone. The first and the last one
    are warned: they come back alone, though their processes have no scontrol, as in a container.
    """
    root = tmp_path / "sweep"
    names = ("maskformer_tiny", "maskformer_tiny_pisr")
    configs = [str(shop.code / f"configs/toy/{name}.yaml") for name in names]
    folders = [root / f"{name}_seed{seed}" for name in names for seed in (0, 5)]
    profile = tmp_path / "container.yaml"
    profile.write_text(f"python: env PATH=/nowhere '{sys.executable}'\n")
    sweep = ("--sweep", *configs, "--seeds", "0", "5", "--gpus", "1", *SHARING, "--profile", str(profile))
    tiny = {"SOLVER__MAX_ITER": "3"}
    with shop.edited(TRAINER, STEP, SLOW.format(seconds=1.5)):
        shop.submit(root, *sweep, "--parallel", "3", **tiny)
    array = job_of(folders[0]).split("_")[0]
    assert [job_of(folder) for folder in folders] == [f"{array}_{number}" for number in range(4)]
    shop.wait_for_rows(folders[0], 1)
    shop.cluster.run("scancel", "--signal=USR2", f"{array}_0")
    shop.cluster.run("scancel", "--signal=KILL", f"{array}_2")
    shop.wait_for_rows(folders[3], 1)
    assert shop.cluster.job(f"{array}_3")["JobId"] == array  # to Slurm, that id alone is the whole array
    shop.cluster.run("scancel", "--signal=USR2", f"{array}_3")
    wait_until(lambda: not shop.cluster.run("squeue", "-h", "-j", array).strip(), 120)
    assert [(folder / "finished.json").exists() for folder in folders] == [True, True, False, True]
    for folder in (folders[0], folders[3]):
        said = log(folder)
        assert said.count("warning: Slurm does not answer here") == 2  # at each start
        assert "there is no scontrol here; it is left to the batch script" in said
        assert starts(folder)[1]["start_iteration"] > 0
    assert [len(starts(folders[number])) for number in (0, 1, 3)] == [2, 1, 2]
    again = shop.submit(root, *sweep, **tiny)
    assert again.count("finished: ") == 3
    shop.wait_for_state(job_of(folders[2]), "COMPLETED", "FAILED")
    assert all((folder / "finished.json").exists() for folder in folders)
    assert [starts(folder)[-1]["seed"] for folder in folders] == [0, 5, 0, 5]
    assert "nothing to submit" in shop.submit(root, *sweep, **tiny)
    code, text = shop.launcher("--all", "--root", str(tmp_path), "--json", script="status")
    assert code == 0 and [one["state"] for one in json.loads(text)] == ["finished"] * 4


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
