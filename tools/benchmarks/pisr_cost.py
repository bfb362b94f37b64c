"""What PISR costs: parameters and multiply-adds (fvcore's counter), beside those of its base network.

    python -m tools.benchmarks.pisr_cost
    python -m tools.benchmarks.pisr_cost --config-file configs/ade20k/maskformer_r101_pisr.yaml --size 512

Prints a Markdown table. The counter counts matrix products, convolutions and norms, not element-wise work;
--time adds the median seconds of a forward and backward pass on this machine's CPU.
"""

import argparse
import logging
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn

from mask_former.errors import InputError, run_cli
from pisr_maskformer import PISR, PISROutput
from pisr_maskformer.config import settings_from
from pisr_maskformer.embeddings import FoldedEmbeddings
from pisr_maskformer.hosts.maskformer import PISRTransformerPredictor
from tools.project import project_config

CONFIG = "configs/ade20k/maskformer_r50_pisr.yaml"


class Call(nn.Module):
    """A function of tensors that returns tensors, as a module with the submodules that it uses."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]], *uses: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.uses = nn.ModuleList(uses)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(*inputs)


def batched_product_size(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of baddbmm(_, B×M×K, B×K×N): B·M·K·N."""
    batch, rows, inner = inputs[1].type().sizes()
    return batch * rows * inner * inputs[2].type().sizes()[2]


def product_size(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of a matmul whose right side may be a vector, which fvcore's counter refuses."""
    left, right = (value.type().sizes() for value in inputs)
    return math.prod(left) * (right[-1] if len(right) > 1 else 1)


def pixel_sums_size(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of PISR's pass over B×D×n pixels: B·(Q+K+1)·D·n, and B·D·D·n for the moments of F."""
    features, maps, _, chosen, *_ = (value.type().sizes() for value in inputs[:4])
    with_moments = len(outputs[0].type().elements()) > 3
    rows = maps[1] + chosen[1] + 1 + (features[1] if with_moments else 0)
    return math.prod(features) * rows


def what_is_new(result: PISROutput) -> tuple[Tensor, ...]:
    """What PISR hands to the second prediction: A and c, or F' as a map, and q'."""
    features = result.features
    parts = features.residual if isinstance(features, FoldedEmbeddings) else features
    return *parts, result.queries


def convolution_size(inputs: list[Any], outputs: list[Any]) -> int:
    """Multiply-adds of the backbone's convolutions whose frozen norm is part of them (frozen_norms.py)."""
    result = outputs[0].type().sizes()
    weight = inputs[1].type().sizes()
    return result[0] * math.prod(result[2:]) * math.prod(weight)


def multiply_adds(module: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    """Multiply-adds of one forward pass."""
    analysis = FlopCountAnalysis(module, inputs)
    analysis.set_op_handle("aten::baddbmm", batched_product_size, "aten::matmul", product_size)
    analysis.set_op_handle("prim::PythonOp._PixelSums", pixel_sums_size)
    analysis.set_op_handle("prim::PythonOp.ScaledConvolution", convolution_size)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    return int(analysis.total())


def seconds(module: nn.Module, inputs: tuple[Tensor, ...], repeats: int = 3) -> float:
    """Median seconds of a forward and backward pass."""
    taken = []
    for _ in range(repeats):
        given = [value.detach().requires_grad_() for value in inputs]
        start = time.perf_counter()
        sum(value.sum() for value in module(*given)).backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def row(name: str, new_parameters: int, module: nn.Module, inputs: tuple[Tensor, ...], timed: bool) -> str:
    """A line of the table."""
    module.eval()
    cells = [name, f"{new_parameters / 1e6:.2f} M", f"{multiply_adds(module, inputs) / 1e9:.2f} G"]
    if timed:
        cells.append(f"{seconds(module, inputs):.2f} s")
    return f"| {' | '.join(cells)} |"


def table(
    config_file: str | Path, size: int, timed: bool = False, overrides: Sequence[str] = ()
) -> list[str]:
    """The lines of the table for one image of `size`×`size` pixels; `overrides` are KEY VALUE pairs."""
    chosen = ["MODEL.DEVICE", "cpu", "MODEL.PISR.INFERENCE_STAGE", "initial"]  # the base network alone
    cfg = project_config(config_file, [*overrides, *chosen])
    model = build_model(cfg)
    predictor = model.sem_seg_head.predictor
    if not isinstance(predictor, PISRTransformerPredictor):
        raise InputError(f"{config_file} has no PISR; use a configuration such as {CONFIG}")

    settings = settings_from(cfg)
    sizes = {
        "channels": predictor.mask_dim,
        "query_channels": predictor.hidden_dim,
        "num_classes": predictor.num_classes,
        "thing_ids": model.thing_ids,
    }
    queries, side = predictor.query_embed.num_embeddings, -(-size // predictor.stride)
    features = torch.randn(1, predictor.mask_dim, side, side)
    prediction = (
        features,
        torch.rand(1, queries, side, side),
        torch.rand(1, queries, predictor.num_classes) / predictor.num_classes,
        torch.randn(1, queries, predictor.hidden_dim),
    )

    def base(image: Tensor) -> tuple[Tensor, ...]:
        outputs = model.sem_seg_head(model.backbone(image))
        return outputs["pred_logits"], outputs["pred_masks"]

    def second(queries: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(predictor.predict(queries, features).values())

    lines = [f"| {size}×{size} | parameters | multiply-adds |" + (" forward + backward |" if timed else "")]
    lines.append("|---|---|---|" + ("---|" if timed else ""))
    image = (torch.zeros(1, 3, size, size),)
    base_parameters = parameters(model) - parameters(predictor.pisr)
    lines.append(row("base network", base_parameters, Call(base, model), image, timed))
    for name, variant, direct in (
        ("PISR, associative", settings, False),
        ("PISR, direct", settings, True),
        ("control: learned constant M", replace(settings, relation="constant"), False),
    ):
        pisr = PISR(**sizes, settings=variant, direct=direct)
        call = Call(lambda *given, pisr=pisr: what_is_new(pisr(*given)), pisr)
        lines.append(row(name, parameters(pisr), call, prediction, timed))
    lines.append(row("second prediction", 0, Call(second, predictor), (prediction[3], features), timed))
    return lines


def main(arguments: list[str] | None = None) -> None:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default=CONFIG, help="a PISR configuration (default: %(default)s)")
    parser.add_argument("--size", type=int, default=640, help="side of the image (default: %(default)s)")
    parser.add_argument("--time", action="store_true", help="also measure seconds on this CPU")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs that change the configuration"
    )
    options = parser.parse_args(arguments)
    print("\n".join(table(options.config_file, options.size, options.time, options.opts)))


if __name__ == "__main__":
    sys.exit(run_cli(main))
