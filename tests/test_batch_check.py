"""What a mapper may get wrong is said with the file's name before it reaches the model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mask_former.data.batch_check import check_samples
from mask_former.errors import InputError
from tests.tiny import NUM_CLASSES, sample


def other_class(bad: dict[str, Any], value: int) -> None:
    bad["instances"].gt_classes[1] = value


def other_masks(bad: dict[str, Any], masks: torch.Tensor) -> None:
    bad["instances"]._fields["gt_masks"] = masks


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda bad: other_class(bad, NUM_CLASSES),
            r"segment 1 has class 5, but the model has classes 0\.\.4",
        ),
        (lambda bad: other_class(bad, 255), "segment 1 has class 255"),
        (lambda bad: other_class(bad, -1), "segment 1 has class -1"),
        (lambda bad: other_masks(bad, torch.zeros(3, 64, 64)), "gt_masks are torch.float32"),
        (lambda bad: other_masks(bad, torch.zeros(3, 64, 63) > 0), r"shape \(3, 64, 63\), .*\(3, 64, 64\)"),
        (lambda bad: other_masks(bad, torch.zeros(2, 64, 64) > 0), r"shape \(2, 64, 64\)"),
        (lambda bad: bad.update(image=torch.zeros(4, 64, 64)), r"shape \(4, 64, 64\)"),
        (lambda bad: bad.update(image=torch.full((3, 64, 64), torch.nan)), "not finite"),
    ],
)
def test_faults_name_file_and_id(spoil: Callable[[dict[str, Any]], None], expected: str) -> None:
    bad = sample(7)
    spoil(bad)
    with pytest.raises(InputError, match=rf"^band_7.png \(image id 7\): .*{expected}"):
        check_samples([sample(1), bad], NUM_CLASSES)


def test_good_samples_pass() -> None:
    check_samples([sample(1), sample(2, segments=0), sample(3, 32, 96)], NUM_CLASSES)
