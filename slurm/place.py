"""Where a process stands in its job, as the scheduler tells it."""

import os
from dataclasses import dataclass

from mask_former.errors import InputError


@dataclass(frozen=True)
class Place:
    """Where this process stands in its job."""

    rank: int
    size: int  # processes of the job
    local_rank: int
    local_size: int  # processes of this node
    hosts: tuple[str, ...]  # of the nodes, the first process's first
    job: str
    restart: int
    cluster: str  # slurm, local or debug

    def host_of(self, rank: int) -> str:
        return self.hosts[min(rank // self.local_size, len(self.hosts) - 1)]


class Unmet(InputError):
    """The processes of a job do not find each other, or cannot work together."""


def this_place() -> Place:
    """From the environment that the scheduler gives to each process."""
    from submitit import JobEnvironment

    environment = JobEnvironment()
    job = (
        environment.job_id
        if environment.cluster == "slurm"
        else f"{environment.cluster}-{environment.job_id}"
    )
    return Place(
        rank=environment.global_rank,
        size=environment.num_tasks,
        local_rank=environment.local_rank,
        local_size=max(1, environment.num_tasks // environment.num_nodes),
        hosts=tuple(environment.hostnames),
        job=job,
        restart=int(os.environ.get("SLURM_RESTART_COUNT", 0)) if environment.cluster == "slurm" else 0,
        cluster=environment.cluster,
    )
