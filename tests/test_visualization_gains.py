"""Δ against the paper's tables, and what it says where a metric is missing."""

import math

import pytest

from pisr_maskformer.visualization.gains import gain

HOST = {"PQ": 59.9, "mIoU": 78.5, "iIoU": 62.5}


@pytest.mark.parametrize(
    ("row", "printed"),
    [
        ((62.2, 80.2, 64.4), 5.9),  # Table B.1, default with 2 hidden layers
        ((61.5, 79.4, 63.7), 3.7),  # with 4
        ((61.2, 79.0, 63.3), 2.6),  # implicit
        ((62.0, 80.1, 64.2), 5.4),  # separate
        ((61.7, 79.7, 63.9), 4.4),  # Table B.2, l2 and l2
    ],
)
def test_the_papers_tables(row, printed):
    found = gain(HOST, dict(zip(HOST, row, strict=True)))
    assert found.value == pytest.approx(printed)
    assert found.metrics == ("PQ", "mIoU", "iIoU")


def test_instance_ap_stands_in_where_there_is_no_iiou():
    found = gain({"PQ": 30.0, "mIoU": 40.0, "AP": 20.0}, {"PQ": 31.0, "mIoU": 39.5, "AP": 22.0})
    assert found.value == pytest.approx(2.5)
    assert found.definition() == "Δ = sum of the gains in PQ + mIoU + AP"


def test_iiou_comes_before_ap_and_only_one_counts():
    both = {**HOST, "AP": 0.0}
    assert gain(both, {**HOST, "AP": 50.0}).value == pytest.approx(0)


def test_a_metric_that_one_side_lacks_does_not_count():
    found = gain({"PQ": 1.0, "mIoU": 2.0, "AP": math.nan}, {"PQ": 2.0, "mIoU": 4.0, "AP": 9.0})
    assert found.value == pytest.approx(3) and found.metrics == ("PQ", "mIoU")
    nothing = gain({}, {"PQ": 2.0})
    assert math.isnan(nothing.value) and nothing.definition() == "Δ: no metric that both sides have"
