"""What is particular to a cluster: profiles that its users write, and what Slurm says of it when asked.

A profile is a small YAML file (profiles/example.yaml explains every key). `--profile` names one: a path, or
the name of a file NAME.yaml in slurm/profiles/ or ~/.config/pisr_maskformer/. Without it the environment
variable PISR_SLURM_PROFILE is taken; without that, everything is the cluster's default.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mask_former.errors import InputError
from mask_former.yaml_config import read_yaml

PROFILE_VARIABLE = "PISR_SLURM_PROFILE"
CLIENT_SECONDS = 20.0  # for an answer of a Slurm command: a busy controller takes long


@dataclass(frozen=True)
class Profile:
    """Values for what the command line does not say."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int | None = None  # more GPUs are split over more nodes
    cpus_per_task: int | None = None  # of each process, one a GPU
    mem: str | None = None  # of each node, as sbatch takes it: 64G
    time: str | None = None  # as sbatch takes it: 2-00:00:00
    python: str | None = None  # command that starts Python, a container's prefix before it if need be
    setup: list[str] = field(default_factory=list)  # shell lines before training: modules, venv
    env: dict[str, str] = field(default_factory=dict)  # variables to set
    pass_env: list[str] = field(default_factory=list)  # variables to hand over from the one who submits
    slurm: dict[str, str] = field(default_factory=dict)  # any other key of sbatch


def profile_folders() -> list[Path]:
    return [Path(__file__).resolve().parent / "profiles", Path("~/.config/pisr_maskformer").expanduser()]


def load_profile(name: str | None) -> Profile:
    """The profile of this name or path; the variable's without one; InputError when it cannot be used."""
    name = name or os.environ.get(PROFILE_VARIABLE)
    if not name:
        return Profile()
    candidates = [Path(name).expanduser(), *(folder / f"{name}.yaml" for folder in profile_folders())]
    found = [path for path in candidates if path.is_file()]
    if not found:
        folders = " or ".join(str(folder) for folder in profile_folders())
        known = sorted(path.stem for folder in profile_folders() for path in folder.glob("*.yaml"))
        raise InputError(
            f"--profile {name}: no such file, and no {name}.yaml in {folders}"
            f" (there: {', '.join(known) or 'none'}); copy slurm/profiles/example.yaml and fill it in"
        )
    return read_profile(found[0])


def read_profile(path: Path) -> Profile:
    content = read_yaml(path)
    valid = {one.name: one for one in fields(Profile)}
    for key, value in content.items():
        if key not in valid:
            raise InputError(f"{path}: unknown key {key}; valid are: {', '.join(valid)}")
        problem = _problem(key, value)
        if problem:
            raise InputError(f"{path}: {key} is {value!r}, but must be {problem}")
    if "slurm" in content:  # exclusive: true is sbatch's bare --exclusive, false leaves it out
        keys = {name: value for name, value in content["slurm"].items() if value is not False}
        content["slurm"] = {name: "" if value in (True, None) else value for name, value in keys.items()}
    for mapping in ("env", "slurm"):
        if mapping in content:
            content[mapping] = {str(name): _plain(value) for name, value in content[mapping].items()}
    return Profile(**content)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _problem(key: str, value: Any) -> str:
    if key in ("gpus_per_node", "cpus_per_task"):
        ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
        return "" if ok else "a whole number above 0"
    if key in ("setup", "pass_env"):
        ok = isinstance(value, list) and all(isinstance(line, str) for line in value)
        return "" if ok else "a list of texts"
    if key in ("env", "slurm"):
        return "" if isinstance(value, Mapping) else "names with values"
    return "" if isinstance(value, str) else "a text (in quotes)"


def has_slurm() -> bool:
    return shutil.which("sbatch") is not None


def ask(*command: str) -> str | None:
    """What a Slurm command prints; None when it is missing, fails or does not answer in time."""
    try:
        answer = subprocess.run(
            command, capture_output=True, text=True, timeout=CLIENT_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout if answer.returncode == 0 else None


def records(text: str | None) -> list[dict[str, str]]:
    """Lines of `scontrol -o show`, each as {key: value}."""
    return [dict(re.findall(r"(\w[\w:/]*)=(\S*)", line)) for line in (text or "").splitlines() if "=" in line]


@dataclass(frozen=True)
class Node:
    """What a node of a partition has."""

    cpus: int
    gpus: int


@dataclass(frozen=True)
class Partition:
    """A partition and its nodes. `minutes`: what a job without --time gets; None without a limit."""

    name: str
    minutes: int | None
    nodes: tuple[Node, ...]


def partition_facts(name: str | None) -> Partition | None:
    """The partition of this name, or the default one; None when Slurm does not answer.

    Several names, with commas as sbatch takes them, count as one partition with the shortest limit.
    InputError when there is none of a name, with those that there are.
    """
    found = {one["PartitionName"]: one for one in records(ask("scontrol", "-a", "-o", "show", "partition"))}
    if not found:
        return None
    default = [key for key, one in found.items() if one.get("Default") == "YES"]
    names = name.split(",") if name else default[:1]
    there = ", ".join(found)
    if not names:
        raise InputError(f"the cluster has no default partition; choose one by --partition: {there}")
    for one in names:
        if one not in found:
            raise InputError(f"--partition {one}: the cluster has no such partition; choose one of: {there}")
    limits = [limit for one in names if (limit := _limit(found[one])) is not None]
    return Partition(",".join(names), min(limits, default=None), _nodes_of(set(names)))


def _limit(partition: Mapping[str, str]) -> int | None:
    """Minutes that a job without --time gets: the default, else the longest; None without a limit."""
    for key in ("DefaultTime", "MaxTime"):
        limit = partition.get(key, "NONE")
        if limit != "NONE":
            return parse_minutes(limit) or None
    return None


def _nodes_of(partitions: set[str]) -> tuple[Node, ...]:
    nodes = []
    for one in records(ask("scontrol", "-a", "-o", "show", "node")):
        if partitions & set(one.get("Partitions", "").split(",")):
            nodes.append(Node(int(one.get("CPUTot", 1)), gpu_count(one.get("Gres", ""))))
    return tuple(nodes)


def gpu_count(gres: str) -> int:
    """GPUs in a Gres: gpu:4, gpu:a100:4(S:0-1), of several kinds too; gpu, or gpu:a100, is one."""
    count = 0
    for one in re.sub(r"\([^)]*\)", "", gres).split(","):
        name, *rest = one.strip().split(":")
        if name in ("gpu", "gres/gpu"):
            count += int(rest[-1]) if rest and rest[-1].isdigit() else 1
    return count


def parse_minutes(text: str) -> int:
    """sbatch's --time in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; 0 for UNLIMITED."""
    if text.strip().upper() in ("UNLIMITED", "INFINITE", "0"):
        return 0  # as sbatch takes it, too
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise InputError(f"--time {text}: not a time; give minutes, HOURS:MINUTES:SECONDS or DAYS-HOURS")
    days, *parts = (int(part) if part else None for part in match.groups())
    first, second, third = parts
    assert first is not None
    if days is not None:
        seconds = 86400 * days + 3600 * first + 60 * (second or 0) + (third or 0)
    elif third is not None:
        seconds = 3600 * first + 60 * (second or 0) + third
    else:
        seconds = 60 * first + (second or 0)
    return max(1, -(-seconds // 60))


def job_state(job: str) -> str | None:
    """Slurm's word for the job's state; None when it does not know the job, or does not answer."""
    text = ask("scontrol", "-o", "show", "job", job)
    if text:
        return records(text)[-1].get("JobState")
    return accounted_state(job)


def accounted_state(job: str) -> str | None:
    """What accounting says, where there is any: it knows jobs that the controller has forgotten."""
    words = (ask("sacct", "-n", "-X", "-P", "-o", "State", "-j", job) or "").split()
    return words[0] if words else None


ACTIVE = {
    "PENDING",
    "RUNNING",
    "CONFIGURING",
    "COMPLETING",
    "SUSPENDED",
    "REQUEUED",
    "REQUEUE_HOLD",
    "RESIZING",
}


def is_active(state: str | None) -> bool:
    """Whether a job in this state runs or will."""
    return state in ACTIVE
