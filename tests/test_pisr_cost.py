"""The table of what PISR costs: counted products against counts by hand, and the rows."""

import pytest
import torch
from torch import nn

from pisr_maskformer.pixel_sums import pixel_sums
from tests.tiny import DATASET, PLAIN, register_dataset
from tests.tiny_pisr import CONFIGS, overrides
from tools.benchmarks.pisr_cost import Call, multiply_adds, table


def test_products_are_counted_as_by_hand():
    left, right, vector, offset = torch.ones(2, 3, 4), torch.ones(2, 4, 5), torch.ones(4), torch.ones(2, 3, 1)
    call = Call(
        lambda *given: (given[0] @ given[1], given[0] @ given[2], torch.baddbmm(given[3], *given[:2]))
    )
    assert multiply_adds(call, (left, right, vector, offset)) == 2 * 3 * 4 * 5 + 2 * 3 * 4 + 2 * 3 * 4 * 5
    assert multiply_adds(nn.Conv2d(2, 6, 1), (torch.ones(1, 2, 3, 3),)) == 2 * 6 * 9


@pytest.mark.parametrize("moments", [False, True])
def test_the_pass_over_pixels_is_counted_as_by_hand(moments):
    features, maps, factor = torch.rand(1, 8, 3, 4), torch.rand(1, 5, 3, 4), torch.rand(1, 1, 3, 4)
    chosen = torch.tensor([[0, 1]])
    call = Call(lambda *given: pixel_sums(given[0], given[1], None, chosen, given[2], moments)[1:3])
    # five maps, two chosen ones and the count of pixels, and 8×8 products for the covariance
    assert multiply_adds(call, (features, maps, factor)) == (5 + 2 + 1 + (8 if moments else 0)) * 8 * 12


def test_the_readme_shows_what_is_counted():
    register_dataset()
    lines = table(CONFIGS / "ade20k" / "maskformer_r50_pisr.yaml", 640, overrides=["DATASETS.TRAIN", "()"])
    readme = (CONFIGS.parent / "README.md").read_text()
    assert "\n".join(lines) in readme


def test_table_has_a_row_for_each_part():
    register_dataset()
    small = overrides(PLAIN | {"DATASETS.TEST": (DATASET,)})
    lines = table(CONFIGS / "ade20k" / "maskformer_r50_pisr.yaml", 64, overrides=small)
    cells = {line.split(" | ")[0][2:]: line.strip("| ").split(" | ")[1:] for line in lines[2:]}
    assert list(cells) == [
        "base network",
        "PISR, associative",
        "PISR, direct",
        "control: learned constant M",
        "second prediction",
    ]
    assert cells["PISR, associative"][0] == cells["PISR, direct"][0]
    assert cells["second prediction"][0] == "0.00 M"
    assert all(float(cell.split()[0]) >= 0 and cell[-1] in "MG" for row in cells.values() for cell in row)
