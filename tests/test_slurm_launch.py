"""From a command line to a plan and a script, without Slurm: nothing is asked, and nothing written."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from mask_former.errors import InputError
from mask_former.training.hooks import EvaluationHook
from mask_former.training.log import TrainingLog
from mask_former.training.stopping import StopRequest
from mask_former.training.writers import JsonWriter
from slurm import cluster, launch, plan, restarts
from slurm.cluster import Node, Partition, parse_minutes
from slurm.plan import Plan

ROOT = Path(__file__).resolve().parent.parent
PISR = str(ROOT / "configs/ade20k/maskformer_r50_pisr.yaml")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ask", lambda *command: None)
    monkeypatch.delenv(cluster.PROFILE_VARIABLE, raising=False)


def planned(*arguments: str) -> Plan:
    made = launch.plan_of(launch.parser().parse_args(arguments))
    assert made is not None
    return made


def with_partition(monkeypatch: pytest.MonkeyPatch, *nodes: Node, minutes: int | None = None) -> None:
    facts = Partition("main", minutes, nodes)
    monkeypatch.setattr(plan, "partition_facts", lambda name: facts)


def test_the_command_of_the_readme_asks_for_one_job_of_four_gpus_on_one_node(tmp_path: Path) -> None:
    made = planned("--config", PISR, "--gpus", "4", "--run-dir", str(tmp_path / "run"))
    lines = made.sbatch_script().splitlines()
    flags = {line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")}
    assert flags == {
        "job-name=maskformer_r50_pisr",
        "nodes=1",
        "ntasks-per-node=4",
        "gpus-per-node=4",
        "cpus-per-task=8",
        "signal=USR2@90",
        "requeue",
        "open-mode=append",
        f"output={tmp_path}/run/slurm/%j_0_log.out",
    }
    (srun,) = [line for line in lines if line.startswith("srun ")]
    flags = {
        "--kill-on-bad-exit=1",
        "--wait=120",
        "--cpus-per-task=8",
        "--distribution=block",
        "--export=ALL",
    }
    assert flags <= set(srun.split())
    assert lines[lines.index("# command") - 3] == f"cd {made.code}"  # whatever the set-up lines did
    assert not (tmp_path / "run").exists()


def test_a_dry_run_needs_neither_slurm_nor_data(tmp_path: Path) -> None:
    """A process of its own, from another folder, in which no Slurm program can be found."""
    command = [sys.executable, str(ROOT / "slurm/launch.py"), "--config", PISR, "--gpus", "4", "--dry-run"]
    environment = {"PATH": str(tmp_path), "HOME": str(tmp_path), "DETECTRON2_DATASETS": "nowhere"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gpus-per-node=4" in done.stdout and "720000 iterations" in done.stdout
    assert f"export DETECTRON2_DATASETS={tmp_path}/nowhere" in done.stdout
    assert not list(tmp_path.iterdir())
    done = subprocess.run(
        command[:-1], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "by --executor local" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "nodes", "processes"),
    [
        (("--gpus", "1"), 1, 1),
        (("--gpus", "8", "--nodes", "2"), 2, 4),
        (("--gpus", "0"), 1, 1),
        (("--gpus", "0", "--tasks", "4", "--nodes", "2"), 2, 2),
        (("--gpus", "0", "--nodes", "2"), 2, 1),
    ],
)
def test_processes_are_split_over_nodes(
    tmp_path: Path, arguments: tuple[str, ...], nodes: int, processes: int
) -> None:
    made = planned("--config", PISR, "--run-dir", str(tmp_path), *arguments)
    assert (made.nodes, made.tasks_per_node) == (nodes, processes)
    assert ("--gpus-per-node" in made.sbatch_script()) == (made.gpus > 0)


def test_a_profile_and_flags_meet_in_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flag comes before the profile; the set-up lines before everything else."""
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "partition: gpu\naccount: a b\ngpus_per_node: 4\ncpus_per_task: 5\nmem: 64G\ntime: 1-0\n"
        "python: singularity exec image.sif python\nsetup: [module load cuda]\n"
        "env: {NCCL_SOCKET_IFNAME: ib0}\npass_env: [KEY, ABSENT]\n"
        "slurm: {licenses: 'x:1', oversubscribe: ''}\n"
    )
    monkeypatch.setenv(cluster.PROFILE_VARIABLE, str(profile))
    monkeypatch.setenv("KEY", "a'b")
    made = planned(
        "--config",
        PISR,
        "--gpus",
        "8",
        "--run-dir",
        str(tmp_path / "r"),
        "--account",
        "mine",
        "--slurm",
        "nice=5",
    )
    text = made.sbatch_script()
    for line in (
        "partition=gpu",
        "account=mine",
        "nodes=2",
        "gpus-per-node=4",
        "cpus-per-task=5",
        "mem=64G",
        "time=1440",
        "licenses=x:1",
        "oversubscribe",
        "nice=5",
    ):
        assert f"#SBATCH --{line}\n" in text
    setup = text[text.index("# setup") :].splitlines()[1:5]
    assert setup[0].startswith("export DETECTRON2_DATASETS=")  # the profile's lines may set another
    assert setup[1:3] == ["module load cuda", "export NCCL_SOCKET_IFNAME=ib0"]
    assert re.search(r""" bash -c '.*' - singularity exec image.sif python -u -m submitit""", text)
    # Handed over by sbatch: neither in the script nor on the screen.
    assert "a'b" not in text and "KEY" not in text
    assert "pass_env: ABSENT is not set here" in made.warnings[0] and "KEY is" not in str(made.warnings)


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("gpus-per-node=a100:2", "gpus-per-node=a100:2"),
        ("gpus_per_node=a100", "gpus-per-node=a100:2"),
        ("gres=gpu:a100,tmp:1", "gres=gpu:a100:2,tmp:1"),
        ("gpus=a100:4", "gpus=a100:4"),
    ],
)
def test_a_kind_of_gpu_takes_the_place_of_the_plain_number(tmp_path: Path, key: str, line: str) -> None:
    """Also before a profile's own kind."""
    profile = tmp_path / "site.yaml"
    profile.write_text("slurm: {gres: 'gpu:h100'}\n")
    base = ("--config", PISR, "--nodes", "2", "--run-dir", str(tmp_path / "r"), "--profile", str(profile))
    for more, expected in ((("--slurm", key), line), ((), "gres=gpu:h100:2")):
        lines = planned(*base, "--gpus", "4", *more).sbatch_script().splitlines()
        found = [one for one in lines if one.startswith(("#SBATCH --gres", "#SBATCH --gpus"))]
        assert found == [f"#SBATCH --{expected}"]
    assert "gres" not in planned(*base, "--gpus", "0").sbatch_script()


def test_switches_and_flags_of_a_profile(tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text(
        "slurm: {exclusive: true, contiguous: false, reservation: theirs, export: NONE}\npass_env: [PATH]\n"
    )
    base = ("--config", PISR, "--run-dir", str(tmp_path / "r"), "--profile", str(profile))
    lines = planned(*base, "--reservation", "mine").sbatch_script().splitlines()
    assert {"#SBATCH --exclusive", "#SBATCH --reservation=mine", "#SBATCH --export=PATH"} <= set(lines)
    assert not any("contiguous" in line or "theirs" in line for line in lines)
    profile.write_text("slurm: {partition: gpu}\n")
    with pytest.raises(InputError, match="use --partition .in a profile: the key partition"):
        planned(*base)


def test_the_script_grants_a_wish_whatever_the_set_up_lines_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run by bash, with an srun that fails."""
    (profile := tmp_path / "site.yaml").write_text("setup: [set -eu]\n")
    made = planned("--config", PISR, "--run-dir", str(tmp_path / "r"), "--profile", str(profile))
    for name, line in (("srun", "exit 3"), ("scontrol", f'echo "$@" >> {tmp_path}/calls')):
        (program := tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{line}\n")
        program.chmod(0o755)
    made.code.mkdir(parents=True)
    made.logs.mkdir()
    for name in ("ARRAY_JOB_ID", "ARRAY_TASK_ID", "RESTART_COUNT"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    for wish, code in ((True, 0), (False, 3)):
        if wish:
            (made.logs / "8_0_requeue").touch()
        assert subprocess.run(["bash", "-c", made.sbatch_script()], timeout=30).returncode == code
    assert (tmp_path / "calls").read_text() == "requeue 8\n"


def test_an_early_signal_does_not_end_what_srun_starts(tmp_path: Path) -> None:
    """Real processes: ignored from the shell on, and over exec, until Python takes it."""
    code = (
        "import os, signal, sys; os.kill(os.getpid(), signal.SIGUSR2); "
        "signal.signal(signal.SIGUSR2, lambda *_: print('taken', sys.argv[1])); "
        "os.kill(os.getpid(), signal.SIGUSR2)"
    )
    command = f"{plan.IGNORE_EARLY} env {shlex.quote(sys.executable)} -c {shlex.quote(code)} 'a b'"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "taken a b\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("partitoin: gpu", "unknown key partitoin; valid are: partition, account"),
        ("gpus_per_node: four", "must be a whole number above 0"),
        ("gpus_per_node: true", "must be a whole number above 0"),
        ("setup: module load cuda", "must be a list of texts"),
        ("mem: 64", "must be a text"),
        ("- a", "site.yaml"),
    ],
)
def test_a_bad_profile_is_told_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        cluster.load_profile(str(path))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_the_example_profile_is_one() -> None:
    example = cluster.load_profile("example")
    assert example.gpus_per_node == 4 and example.slurm == {"reservation": "my_reservation"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give either --config FILE or --sweep FILES"),
        (("--config", PISR, "--sweep", PISR), "give either --config FILE or --sweep FILES"),
        (("--config", PISR, "--seeds", "1"), "--seeds goes with --sweep"),
        (("--config", PISR, "--gpus", "4", "--tasks", "2"), "--tasks is for training on the CPU"),
        (("--config", PISR, "--gpus", "3", "--nodes", "2"), "--gpus 3 cannot be split over 2 nodes"),
        (("--config", PISR, "--gpus", "5"), "IMS_PER_BATCH 16 cannot be dealt to 5 processes"),
        (("--config", PISR, "--slurm", "signal=USR1"), "signal is the launcher's"),
        (
            ("--config", PISR, "--slurm", "cpus_per_task=2"),
            "--slurm cpus-per-task=…: use --cpus-per-task (in",
        ),
        (("--config", PISR, "--slurm", "ntasks-per-node=2"), "use --gpus and --nodes"),
        (("--config", PISR, "--slurm", "reservation=x"), "use --reservation"),
        (("--config", PISR, "--slurm", "job_name=x"), "use --name"),
        (("--config", PISR, "--slurm", "N=2"), "give the long name"),
        (("--config", PISR, "--slurm", "gres=gpu:a100:2"), "asks for 2 GPUs a node, but --gpus 1 for 1"),
        (("--config", PISR, "--gpus", "0", "--slurm", "gpus=2"), "asks for 2 GPUs, but --gpus 0 for 0"),
        (("--config", PISR, "--time", "3", "--grace", "61"), "leaves less than 2 min before the 61 s"),
        (("--config", PISR, "--run-dir", "a%j"), "Slurm cannot write logs below a path with %"),
        (("--config", PISR, "--", "OUTPUT_DIR", "x"), "set it by --run-dir"),
        (("--config", PISR, "--time", "soon"), "--time soon: not a time"),
        (("--sweep", PISR, PISR), "two configs are called maskformer_r50_pisr"),
    ],
)
def test_what_does_not_fit_together_is_refused(arguments: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as error:
        planned(*arguments)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("30", 30), ("90:30", 91), ("2:00:00", 120), ("1-0", 1440), ("1-12:30", 2190), ("0:0:1", 1)],
)
def test_times_are_read_as_sbatch_does(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


def test_restarts_follow_from_time_limit_and_speed(tmp_path: Path) -> None:
    """720,000 iterations of 0.5 s are 100 h; a day leaves 24 h - 3 min - 90 s: five starts, four restarts."""
    base = ("--config", PISR, "--gpus", "4", "--run-dir", str(tmp_path / "run"), "--time", "1-0")
    made = planned(*base, "--seconds-per-iteration", "0.5")
    assert made.restarts.needed == 4 and made.max_restarts == 4 + restarts.SPARE
    assert not any("too few" in warning for warning in made.warnings)
    few = planned(*base, "--seconds-per-iteration", "0.5", "--max-restarts", "3")
    assert "--max-restarts 3 is too few" in few.warnings[0]
    assert made.restarts.explanation.endswith(
        "4 restart(s) and 100 spare, since preemptions and failing nodes count too"
    )
    assumed = planned(*base).restarts  # 600 h at three times the assumed second
    assert assumed.needed == 25 and "1 s an iteration (assumed, times 3 to be safe)" in assumed.explanation
    unlimited = planned(*base[:-1], "UNLIMITED")
    assert unlimited.limit_minutes is None and "#SBATCH --time=0\n" in unlimited.sbatch_script()


def test_the_speed_is_that_of_this_run_or_of_one_like_it(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "launch.json").write_text(f'{{"config": "{PISR}", "gpus": 4}}')
    (other / "metrics.json").write_text('{"time": 9}\n{"time": 0.25}\n{"time": 0.25}\n{"time": 0.')
    assert restarts.measured_speed(tmp_path / "run", PISR, 4) == (0.25, "measured in other")
    assert restarts.measured_speed(tmp_path / "run", PISR, 8) == (None, "")
    assert restarts.measured_speed(other, "", 0) == (0.25, "measured in this run")


def test_evaluations_take_their_share_of_the_time(tmp_path: Path) -> None:
    """Of 60 s (the median) each 100 iterations: 0.6 s each; a last one that is late changes nothing."""
    rows = [{"iteration": n, "time": 0.5, "total_loss": 1.0} for n in range(0, 320, 10)]
    rows += [
        {"iteration": n, "evaluated": 1, "evaluation_time": s} for n, s in ((99, 60), (199, 20), (299, 90))
    ]
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert restarts.measured_speed(tmp_path, "", 0)[0] == pytest.approx(0.5 + 0.6)


def test_an_evaluation_tells_how_long_it_took(tmp_path: Path) -> None:
    log = TrainingLog(10, 20, [JsonWriter(tmp_path, 0)])

    def evaluate() -> dict[str, dict[str, float]]:
        time.sleep(0.2)
        return {"panoptic_seg": {"PQ": 1.0}}

    hook = EvaluationHook(
        10, evaluate, best_metric="", save_best=lambda *_: None, log=log, stop=StopRequest()
    )
    hook.trainer = SimpleNamespace(iter=9, max_iter=20)
    log.write(9, {"time": 3.0})
    hook.after_step()
    (row,) = [row for row in log.rows_on_file() if "evaluated" in row]
    log.close()
    assert 0.2 <= row["evaluation_time"] < 2.0
    seconds, _ = restarts.measured_speed(tmp_path, "", 0)
    assert seconds == pytest.approx(3.0 + row["evaluation_time"] / 10)


def test_a_signal_that_submitit_alone_would_change_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = ("--config", PISR, "--run-dir", str(tmp_path / "run"))
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR2")
    assert "#SBATCH --signal=USR2@90\n" in planned(*base).sbatch_script()
    monkeypatch.setenv("SUBMITIT_PREEMPT_SIGNAL", "USR1")
    with pytest.raises(InputError, match="SUBMITIT_PREEMPT_SIGNAL=USR1 is not supported.*`unset"):
        planned(*base)


def test_the_cluster_limits_gpus_and_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("--config", PISR, "--run-dir", str(tmp_path))
    with_partition(monkeypatch, Node(cpus=16, gpus=4), Node(cpus=16, gpus=4), minutes=60)
    assert planned(*base, "--gpus", "4").parameters["cpus_per_task"] == 4
    assert planned(*base, "--gpus", "1").parameters["cpus_per_task"] == 8
    assert planned(*base, "--gpus", "1").limit_minutes == 60
    with pytest.raises(InputError, match="those of partition main have 4; try --nodes 2"):
        planned(*base, "--gpus", "8")
    with_partition(monkeypatch, Node(cpus=16, gpus=0))
    with pytest.raises(InputError, match="has no GPUs"):
        planned(*base)
