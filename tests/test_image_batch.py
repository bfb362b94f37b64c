"""Images in one batch: normalised one by one and then padded with zeros is the definition."""

import pytest
import torch
from detectron2.structures import ImageList

from mask_former.image_batch import image_batch

MEAN, STD = torch.tensor([100.0, 50.0, 25.0]).view(3, 1, 1), torch.tensor([2.0, 4.0, 8.0]).view(3, 1, 1)


def images(*sizes: tuple[int, int], dtype: torch.dtype = torch.uint8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, 256, (3, *size), generator=generator).to(dtype) for size in sizes]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("divisibility", [0, 1, 32])
@pytest.mark.parametrize(
    "sizes", [[(32, 64)], [(20, 30), (25, 10)], [(32, 32), (32, 32)], [(1, 40), (40, 1)]]
)
def test_equals_the_definition_bit_for_bit(
    sizes: list[tuple[int, int]], divisibility: int, dtype: torch.dtype
) -> None:
    given = images(*sizes, dtype=dtype)
    batch = image_batch(given, MEAN, STD, divisibility)
    defined = ImageList.from_tensors([(image - MEAN) / STD for image in given], divisibility)
    assert torch.equal(batch.tensor, defined.tensor) and batch.tensor.dtype == torch.float32
    assert batch.image_sizes == [tuple(size) for size in defined.image_sizes] == sizes


def test_the_images_stay_as_they_are_and_types_may_differ() -> None:
    byte, real = images((4, 6)), images((6, 4), dtype=torch.float32)
    before = [byte[0].clone(), real[0].clone()]
    batch = image_batch([*byte, *real], MEAN, STD)
    assert torch.equal(byte[0], before[0]) and torch.equal(real[0], before[1])
    assert torch.equal(batch.tensor[0, :, :4], (byte[0] - MEAN) / STD)
    assert torch.equal(batch.tensor[1, :, :, :4], (real[0] - MEAN) / STD)
    assert not batch.tensor[0, :, 4:].any() and not batch.tensor[1, :, :, 4:].any()
