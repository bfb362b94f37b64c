"""What Slurm's commands print, and what is made of it."""

import pytest

from mask_former.errors import InputError
from slurm import cluster
from slurm.cluster import Node, Partition, ask, is_active, job_state, partition_facts

PARTITIONS = """\
PartitionName=long AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=2-00:00:00 State=UP Nodes=a[1-2]
PartitionName=gpu AllowGroups=ALL Default=YES DefaultTime=01:00:00 MaxTime=UNLIMITED State=UP Nodes=a[1-3]
PartitionName=free AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED State=UP Nodes=c1
"""
NODES = """\
NodeName=a1 CPUTot=64 Gres=gpu:a100:4(S:0-1) OS=Linux 6.1.0 #1 SMP Partitions=long,gpu Comment=x=y
NodeName=a2 CPUTot=32 Gres=gpu:h100:2,gpu:mig:8 OS=Linux 6.1.0 Partitions=long,gpu
NodeName=a3 CPUTot=32 Gres=tmpdisk:100,gpu:4 OS=Linux 6.1.0 Partitions=gpu
NodeName=c1 CPUTot=16 Gres=(null) OS=Linux 6.1.0 Partitions=free
"""


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    texts = {"partition": PARTITIONS, "node": NODES}
    monkeypatch.setattr(cluster, "ask", lambda *command: texts.get(command[-1], texts.get(command[0])))
    return texts


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (None, Partition("gpu", 60, (Node(64, 4), Node(32, 10), Node(32, 4)))),
        ("long", Partition("long", 2880, (Node(64, 4), Node(32, 10)))),
        ("free", Partition("free", None, (Node(16, 0),))),
        ("free,gpu", Partition("free,gpu", 60, (Node(64, 4), Node(32, 10), Node(32, 4), Node(16, 0)))),
    ],
)
def test_a_partition_has_nodes_and_a_limit(
    answers: dict[str, str], name: str | None, facts: Partition
) -> None:
    assert partition_facts(name) == facts


@pytest.mark.parametrize(
    ("gres", "count"), [("gpu", 1), ("gpu:a100", 1), ("gpu:a100:4(S:0,2),tmp:9", 4), ("tmp:3", 0), ("", 0)]
)
def test_a_gres_without_a_number_is_one(gres: str, count: int) -> None:
    assert cluster.gpu_count(gres) == count


def test_an_unknown_or_missing_partition_is_told_with_those_that_there_are(answers: dict[str, str]) -> None:
    with pytest.raises(InputError, match="--partition cpu: .* choose one of: long, gpu, free"):
        partition_facts("gpu,cpu")
    answers["partition"] = PARTITIONS.replace("Default=YES", "Default=NO")
    with pytest.raises(InputError, match="no default partition; choose one by --partition: long, gpu, free"):
        partition_facts(None)
    del answers["partition"]
    assert partition_facts("anything") is None  # Slurm does not answer: it will say itself what is wrong


def test_a_state_is_asked_of_the_controller_then_of_accounting(answers: dict[str, str]) -> None:
    assert job_state("7") is None
    answers["sacct"] = "CANCELLED by 1000\n"
    assert job_state("7") == "CANCELLED" and not is_active(job_state("7"))
    answers["7"] = "JobId=7 JobName=a b UserId=x(1) JobState=RUNNING Reason=None\n"
    assert job_state("7") == "RUNNING" and is_active("RUNNING")


def test_a_command_that_is_missing_fails_or_hangs_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CLIENT_SECONDS", 0.2)
    assert ask("echo", "a") == "a\n"
    assert ask("no-such-program-of-slurm") is None and ask("false") is None and ask("sleep", "60") is None
