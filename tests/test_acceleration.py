"""Memory layout and torch.compile: the same numbers and names, compiled once; one line where it cannot."""

from typing import Any

import pytest
import torch
from torch import nn

from mask_former.optimizer import build_clipping, build_optimizer
from mask_former.training import acceleration
from mask_former.training.acceleration import COMPILED_PARTS, accelerate, compile_parts, lay_channels_last
from mask_former.training.step import TrainingStep
from tests.tiny import ENCODER, resnet, sample, tiny_config, tiny_model
from tests.tiny_pisr import batch, tiny_pisr

CPU = torch.device("cpu")
AMP = {"SOLVER.AMP.ENABLED": True, "SOLVER.AMP.DTYPE": "bfloat16"}


def losses(model: nn.Module, samples: list[dict[str, Any]]) -> dict[str, float]:
    """Losses by name, after their gradients were computed."""
    model.zero_grad()
    found = model(samples)
    sum(found.values()).backward()
    return {name: loss.item() for name, loss in found.items()}


def one_step(changes: dict[str, Any], saved: dict[str, Any] | None = None) -> TrainingStep:
    """The tiny model with a ResNet after a step, or two from `saved`."""
    cfg = tiny_config(resnet(18) | changes)
    model = tiny_model(resnet(18) | changes)
    accelerate(cfg, model)
    step = TrainingStep(model, build_optimizer(cfg, model), build_clipping(cfg))
    if saved:
        step.load_state_dict(saved)
    step(0, [[sample(0)]])
    return step


def is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def test_only_the_backbone_under_amp_lies_channels_last() -> None:
    kinds = {
        name: {
            part: sum(is_channels_last(p) for p in getattr(step.network, part).parameters() if p.dim() == 4)
            for part in ("backbone", "sem_seg_head")
        }
        for name, step in {
            "full": one_step({}),
            "amp": one_step(AMP),
            "off": one_step({**AMP, "SOLVER.AMP.CHANNELS_LAST": False}),
        }.items()
    }
    assert kinds["full"] == kinds["off"] == {"backbone": 0, "sem_seg_head": 0}
    assert kinds["amp"] == {"backbone": 17, "sem_seg_head": 0}  # its 1×1 convolutions have no layout


def test_channels_last_gives_the_same_losses_and_gradients() -> None:
    plain, last = tiny_model(resnet(18)), tiny_model(resnet(18))
    lay_channels_last(last.backbone)
    assert losses(last, [sample(0)]) == pytest.approx(losses(plain, [sample(0)]), rel=1e-4)
    for one, other in zip(last.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3 * other.grad.abs().max().item())


@pytest.mark.parametrize(("before", "after"), [({}, AMP), (AMP, {})])
def test_a_run_goes_on_with_another_layout(before: dict[str, Any], after: dict[str, Any]) -> None:
    resumed = one_step(after, one_step(before).state_dict())
    for parameter, moments in resumed.optimizer.state.items():
        assert moments["exp_avg"].stride() == moments["exp_avg_sq"].stride() == parameter.stride()
        assert moments["step"] == 2


def test_compiled_once_whatever_the_images_show() -> None:
    graphs: list[int] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(len(inputs))
        return graph.forward

    model, compiled = tiny_pisr(), tiny_pisr()
    compile_parts(compiled, CPU, backend=count)  # type: ignore[arg-type]
    compiled.criterion.compiled = False  # its own business, and its own backend
    assert list(compiled.state_dict()) == list(model.state_dict())
    first = batch()
    assert losses(compiled, first) == pytest.approx(losses(model, first), rel=1e-5)
    once = len(graphs)
    assert once >= len(COMPILED_PARTS)
    others = [sample(5, 96, 96, segments=2), sample(6, 50, 90, segments=5)]  # padded to the same size
    assert losses(compiled, others) == pytest.approx(losses(model, others), rel=1e-5)
    assert len(graphs) == once


def test_without_a_compiler_one_line_and_nothing_is_compiled(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(acceleration.logger, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    changes = {**ENCODER, "SOLVER.COMPILE": True}
    model = tiny_model(changes)
    accelerate(tiny_config(changes), model)
    assert said == [
        "SOLVER.COMPILE: nothing is compiled, because there is no C++ compiler (g++ or clang++ or c++) on "
        "PATH; install one, or set CXX; training goes on without"
    ]
    assert not model.criterion.compiled
    assert all(model.get_submodule(name)._compiled_call_impl is None for name in COMPILED_PARTS)
