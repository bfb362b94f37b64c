"""The stream of training samples: what stands where, who gets what, and on what nothing may depend."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mask_former.data.augmentations import crop_augmentations
from mask_former.data.loader import MicroBatches, SampleOrder, aspect_ratios, build_training_loader
from mask_former.data.mappers import PanopticMapper
from mask_former.errors import InputError
from mask_former.random_state import random_state, same_random_state, seeded, set_random_state
from tests import tiny_panoptic


def draws() -> tuple[float, float, float]:
    """One number of every generator."""
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def random_mapper(record: dict[str, Any]) -> dict[str, Any]:
    """A sample that is nothing but its record and what augmentation would draw for it."""
    return {"id": record["id"], "draws": draws()}


def take(loader: Any, count: int) -> list[list[dict[str, Any]]]:
    batches = iter(loader)
    return [next(batches) for _ in range(count)]


RECORDS = [{"id": index, "width": 1 + index, "height": 4} for index in range(7)]


def stream(count: int = 6, **options: Any) -> list[list[dict[str, Any]]]:
    options = {"seed": 5, "batch_size": 3, **options}
    return take(build_training_loader(RECORDS, random_mapper, **options), count)


def test_every_epoch_is_a_shuffle_of_its_own() -> None:
    order = SampleOrder(10, seed=1)
    epochs = [[order[10 * epoch + i] for i in range(10)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert [SampleOrder(10, seed=2)[i] for i in range(10)] != epochs[0]


def test_places_do_not_depend_on_what_was_asked_before() -> None:
    order = SampleOrder(1000, seed=1)
    forwards = [order[i] for i in (3, 2500, 999_999_999)]
    assert [SampleOrder(1000, seed=1)[i] for i in (999_999_999, 2500, 3)] == forwards[::-1]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_do_not_change_the_samples(workers: int) -> None:
    assert stream(num_workers=workers) == stream()


def test_real_samples_of_a_worker_are_bit_for_bit_those_of_this_process(tmp_path: Path) -> None:
    tiny_panoptic.write(tmp_path)
    augmentations = crop_augmentations(
        min_sizes=[40, 63, 100],
        max_size=400,
        sampling="choice",
        crop=("absolute", (64, 64)),
        single_category_max_area=0.9,
        color_jitter=True,
        flip="horizontal",
        pad_divisor=64,
    )
    mapper = PanopticMapper(augmentations=augmentations, num_classes=3)
    records = [tiny_panoptic.record(tmp_path)]
    here, there = (
        take(build_training_loader(records, mapper, seed=3, batch_size=2, num_workers=workers), 4)
        for workers in (0, 1)
    )
    for ours, theirs in zip(sum(here, []), sum(there, []), strict=True):
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["instances"].gt_masks, theirs["instances"].gt_masks)
        assert torch.equal(ours["instances"].gt_classes, theirs["instances"].gt_classes)
        assert ours["unpadded_size"] == theirs["unpadded_size"]


def test_a_later_start_goes_on_with_the_same_samples() -> None:
    whole = stream(8)
    assert stream(3, start=15, num_workers=1) == whole[5:]
    # another batch size, as on another number of GPUs: the stream goes on where it was
    flat = [sample for batch in whole for sample in batch]
    assert stream(1, start=10, batch_size=4)[0] == flat[10:14]


def test_the_same_record_is_augmented_anew_each_time() -> None:
    samples = [sample for batch in stream(14) for sample in batch]
    assert len(samples) == 42 and len({sample["draws"] for sample in samples}) == 42


def test_drawing_samples_leaves_the_process_its_own_random_numbers() -> None:
    with same_random_state():
        untouched = draws()
    stream(4)
    assert draws() == untouched


@pytest.mark.parametrize(("processes", "micro_batches"), [(1, 1), (1, 6), (2, 1), (3, 2)])
@pytest.mark.parametrize("grouped", [False, True])
def test_processes_and_micro_batches_share_one_batch(
    processes: int, micro_batches: int, grouped: bool
) -> None:
    ratios = aspect_ratios(RECORDS) if grouped else None
    shared: list[list[tuple[int, int]]] = [[], []]
    for rank in range(processes):
        batches = iter(
            MicroBatches(
                SampleOrder(7, seed=0),
                batch_size=6,
                micro_batches=micro_batches,
                aspect_ratios=ratios,
                rank=rank,
                processes=processes,
            )
        )
        for batch in shared:
            for _ in range(micro_batches):
                part = next(batches)
                assert len(part) == 6 // (processes * micro_batches)
                batch += part
    order = SampleOrder(7, seed=0)
    for number, batch in enumerate(shared):
        places = [(position, order[position]) for position in range(6 * number, 6 * number + 6)]
        if grouped:  # the width is 1 + the index: dealt from narrow to wide
            assert [index for _, index in batch] == sorted(index for _, index in places)
        assert sorted(batch) == places
        assert grouped or batch == places


@pytest.mark.parametrize(("batch_size", "micro_batches"), [(6, 4), (0, 1), (2, 3), (6, 0)])
def test_a_batch_that_cannot_be_dealt_is_refused(batch_size: int, micro_batches: int) -> None:
    with pytest.raises(InputError, match="IMS_PER_BATCH .* must be a multiple of"):
        MicroBatches(SampleOrder(7, seed=0), batch_size=batch_size, micro_batches=micro_batches)


def test_records_without_sizes_are_not_grouped() -> None:
    assert aspect_ratios([{"width": 2, "height": 4}, {"file_name": "a.png"}]) is None
    assert aspect_ratios([{"width": 2, "height": 4}]) == pytest.approx([0.5])


def test_random_states_are_plain_data_and_come_back(tmp_path: Any) -> None:
    draws()
    np.random.randn()  # leaves a second gaussian number cached
    torch.save(random_state(), tmp_path / "state.pth")
    first = draws(), np.random.randn(), random.gauss(0, 1)
    set_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert (draws(), np.random.randn(), random.gauss(0, 1)) == first


def test_seeded_depends_on_every_part_of_the_key() -> None:
    def drawn(*key: int) -> tuple[float, float, float]:
        with seeded(*key):
            return draws()

    assert drawn(1, 2) == drawn(1, 2)
    keys = [(1, 2), (2, 1), (1, 3), (12,), (1, 2**40)]
    assert len({drawn(*key) for key in keys}) == len(keys)
    assert len({number for key in keys for number in drawn(*key)}) == 3 * len(keys)
