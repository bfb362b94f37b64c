"""Whether what is asked for fits together, the cluster, and the data; told before a job is queued."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mask_former.data.catalog import datasets_root
from mask_former.errors import InputError
from slurm.cluster import Partition, Profile
from tools.project import read_config


def divide(args: argparse.Namespace, profile: Profile) -> tuple[int, int]:
    """Nodes, and processes on each: one a GPU."""
    tasks = args.gpus or args.tasks or args.nodes or 1
    if args.gpus and args.tasks:
        raise InputError(
            "--tasks is for training on the CPU, with --gpus 0: with GPUs there is one process a GPU"
        )
    nodes = args.nodes
    if nodes is None:
        nodes = -(-args.gpus // profile.gpus_per_node) if args.gpus and profile.gpus_per_node else 1
    if tasks % nodes:
        what = f"--gpus {args.gpus}" if args.gpus else f"--tasks {tasks}"
        raise InputError(f"{what} cannot be split over {nodes} nodes evenly; choose a multiple of {nodes}")
    return nodes, tasks // nodes


def check_fits(partition: Partition | None, gpus: int, nodes: int, tasks_per_node: int) -> None:
    """InputError when no nodes of the partition have that many GPUs."""
    if partition is None or not partition.nodes or not gpus:
        return
    most = max(node.gpus for node in partition.nodes)
    if most == 0:
        raise InputError(f"partition {partition.name} has no GPUs; choose another --partition, or --gpus 0")
    if tasks_per_node > most:
        mend = f"--nodes {-(-gpus // most)}" if -(-gpus // most) <= len(partition.nodes) else f"--gpus {most}"
        raise InputError(
            f"--gpus {gpus} on {nodes} node(s) asks for {tasks_per_node} GPUs a node, but those of partition "
            f"{partition.name} have {most}; try {mend}"
        )
    fitting = sum(node.gpus >= tasks_per_node for node in partition.nodes)
    if nodes > fitting:
        raise InputError(
            f"--nodes {nodes}, but partition {partition.name} has {fitting} with {tasks_per_node} GPUs"
        )


def check_batch(config: Path, overrides: Sequence[str], processes: int) -> None:
    """InputError when the batch cannot be dealt to that many processes."""
    solver = read_config(config, overrides).SOLVER
    parts = processes * solver.ACCUMULATION_STEPS
    if solver.IMS_PER_BATCH % parts:
        raise InputError(
            f"{config}: SOLVER.IMS_PER_BATCH {solver.IMS_PER_BATCH} cannot be dealt to {processes} processes "
            f"with SOLVER.ACCUMULATION_STEPS {solver.ACCUMULATION_STEPS}; add `-- SOLVER.IMS_PER_BATCH N` "
            f"with a multiple of {parts}, and --auto-scale"
        )


def missing_data(config: Path, overrides: Sequence[str]) -> list[str]:
    """A warning of data that this machine does not see; the compute nodes may."""
    cfg = read_config(config, overrides)
    own = [cfg.DATASETS.COCO_PANOPTIC.get(name) for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)]
    paths = [datasets_root(), *(datasets_root() / one.JSON for one in own if one)]
    missing = [path.absolute() for path in paths if not path.exists()][:1]
    return [f"{path} is not here: the job will need it (set DETECTRON2_DATASETS)" for path in missing]
