"""Tensors of any lengths travel together and arrive as they were."""

import torch

from mask_former.transfer import to_device, to_host


def test_several_tensors_in_one_copy() -> None:
    given = [torch.tensor([3, 1]), torch.tensor([], dtype=torch.int64), torch.tensor([7])]
    arrived = to_device(given, torch.device("cpu"))
    assert [one.tolist() for one in arrived] == [[3, 1], [], [7]]


def test_on_the_host_without_a_graph() -> None:
    values = torch.arange(3.0, requires_grad=True) * 2
    host = to_host(values)
    assert host.tolist() == [0, 2, 4] and not host.requires_grad and host.device.type == "cpu"
