"""Training samples in an order that depends on the seed and the position alone.

A training run consumes one endless stream of samples: position 0, 1, 2, … Which record stands at a position,
and how it is augmented, follow from (seed, position): not from the number of loader workers, processes or
micro-batches, nor from where a run was stopped and resumed. A batch of B images is B positions in a row,
dealt to processes and their micro-batches.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from mask_former.errors import InputError
from mask_former.machine import usable_cores
from mask_former.random_state import seeded
from mask_former.training.stopping import serve_until_parent_stops

logger = logging.getLogger(__name__)

Sample = dict[str, Any]
Place = tuple[int, int]  # position in the stream, index of its record


class SampleOrder:
    """Which of `size` records the sample at a position of the stream is: every epoch its own shuffle."""

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)  # a batch lies in two epochs at most, mostly

    def __getitem__(self, position: int) -> int:
        epoch, offset = divmod(position, self.size)
        return int(self._epoch(epoch)[offset])

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, epoch]).permutation(self.size)


class MicroBatches:
    """The places of every micro-batch of this process, batch after batch, without end.

    With `aspect_ratios` (width / height of every record), the images of a batch are dealt in their order, so
    that images of one micro-batch need little padding to a common size; the batch is the same.
    """

    def __init__(
        self,
        order: SampleOrder,
        *,
        batch_size: int,
        micro_batches: int = 1,
        start: int = 0,
        aspect_ratios: np.ndarray | None = None,
        rank: int | None = None,
        processes: int | None = None,
    ) -> None:
        """`batch_size`: images of a batch, over all processes. `micro_batches`: of a batch, in each process.

        `start`: position of the first sample. InputError when the batch cannot be dealt evenly.
        """
        self.order = order
        self.batch_size = batch_size
        self.start = start
        self.aspect_ratios = aspect_ratios
        self.micro_batches = micro_batches
        self.rank = comm.get_rank() if rank is None else rank
        self.processes = comm.get_world_size() if processes is None else processes
        parts = self.processes * micro_batches
        if batch_size < 1 or micro_batches < 1 or batch_size % parts:
            raise InputError(
                f"SOLVER.IMS_PER_BATCH {batch_size} cannot be dealt to {self.processes} process(es) with "
                f"SOLVER.ACCUMULATION_STEPS {micro_batches}: it must be a multiple of {max(1, parts)}"
            )

    def __iter__(self) -> Iterator[list[Place]]:
        size = self.batch_size // (self.processes * self.micro_batches)
        first = self.start
        while True:
            batch = [(position, self.order[position]) for position in range(first, first + self.batch_size)]
            if self.aspect_ratios is not None:
                ratios = self.aspect_ratios
                batch.sort(key=lambda place: float(ratios[place[1]]))  # stable: equals keep their order
            for part in range(self.rank * self.micro_batches, (self.rank + 1) * self.micro_batches):
                yield batch[part * size : (part + 1) * size]
            first += self.batch_size


class TrainingSamples(Dataset[Sample]):
    """The sample at a place; its augmentation draws what belongs to the seed and the position.

    Records lie in one block of memory that forked workers share (a list of dicts would be copied bit by bit
    into every worker as its reference counts change).
    """

    def __init__(
        self, records: Sequence[Mapping[str, Any]], mapper: Callable[[Any], Sample], seed: int
    ) -> None:
        self.records = DatasetFromList(list(records), copy=False)
        self.mapper = mapper
        self.seed = seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> Sample:
        position, index = place
        with seeded(self.seed, position):
            return self.mapper(self.records[index])


def build_training_loader(
    records: Sequence[Mapping[str, Any]],
    mapper: Callable[[Any], Sample],
    *,
    seed: int,
    batch_size: int,
    micro_batches: int = 1,
    start: int = 0,
    num_workers: int = 0,
    group_by_aspect_ratio: bool = False,
) -> "DataLoader[Sample]":
    """Endless loader of this process's micro-batches (lists of samples) from stream position `start` on."""
    ratios = aspect_ratios(records) if group_by_aspect_ratio else None
    batches = MicroBatches(
        SampleOrder(len(records), seed),
        batch_size=batch_size,
        micro_batches=micro_batches,
        start=start,
        aspect_ratios=ratios,
    )
    return DataLoader(
        TrainingSamples(records, mapper, seed),
        batch_sampler=batches,  # type: ignore[arg-type]  # endless: it has no length
        num_workers=num_workers,
        collate_fn=trivial_batch_collator,
        worker_init_fn=serve_until_parent_stops,
        generator=torch.Generator().manual_seed(0),  # else starting it would draw from the global one
    )


def bounded_workers(cfg: CfgNode) -> int:
    """DATALOADER.NUM_WORKERS, but no more than this process's share of the cores it may run on."""
    cores = usable_cores()
    share = max(1, cores // comm.get_local_size())
    if share < cfg.DATALOADER.NUM_WORKERS:
        logger.info(
            "%d data-loader workers instead of %d: %d cores", share, cfg.DATALOADER.NUM_WORKERS, cores
        )
    return min(cfg.DATALOADER.NUM_WORKERS, share)


def aspect_ratios(records: Sequence[Mapping[str, Any]]) -> np.ndarray | None:
    """Width / height of every record; None where a record does not know its size."""
    if not all(record.get("width") and record.get("height") for record in records):
        logger.info("the data set's records have no sizes: batches are not grouped by aspect ratio")
        return None
    return np.array([record["width"] / record["height"] for record in records], dtype=np.float32)
