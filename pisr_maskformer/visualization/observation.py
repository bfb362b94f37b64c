"""What a MaskFormer, with or without PISR, computes for one image: before PISR, after it, and on the way.

Shapes: Q queries · C classes · N instance slots · E = C + N encodings · D channels · h×w mask features
(stride 4) · Hp×Wp the padded input · H×W the image in its file.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pisr_maskformer.hosts.maskformer import PISRTransformerPredictor, bad_input, recorded_internals
from pisr_maskformer.visualization.heatmaps import covered, on_image


@dataclass(frozen=True)
class Stage:
    """One prediction: class probabilities P (Q×C, "no object" left out) and masks σ(m) (Q×h×w), float32."""

    class_probs: np.ndarray
    masks: np.ndarray

    def semantic_heatmap(self, category: int) -> np.ndarray:
        """S_c = Σ_q P_qc σ(m_q), h×w."""
        return np.tensordot(self.class_probs[:, category], self.masks, axes=1)

    def class_map(self) -> np.ndarray:
        """int64 h×w: the class whose semantic heatmap is largest."""
        return np.tensordot(self.class_probs.T, self.masks, axes=1).argmax(axis=0)


@dataclass(frozen=True)
class Observation:
    """A forward of one image. Without PISR both stages are the one prediction and `internals` is empty."""

    result: Mapping[str, Any]  # what the model returns for the image
    initial: Stage  # before PISR
    final: Stage  # the model's prediction
    internals: Mapping[str, np.ndarray | None]  # PISRInternals by name, without the batch dimension
    padded: tuple[int, int]  # (height, width) of the network's input
    resized: tuple[int, int]  # of the image in it, top left
    size: tuple[int, int]  # of the image in its file

    def on_image(self, values: np.ndarray) -> np.ndarray:
        """An h×w map at the size of the image, float32 H×W."""
        return on_image(values, self.padded, self.resized, self.size)

    def inside(self, values: np.ndarray) -> np.ndarray:
        """The part of a map (…×h×w) that shows the image, not its padding."""
        rows, columns = covered(values.shape[-2:], self.padded, self.resized)
        return values[..., :rows, :columns]


def has_pisr(model: nn.Module) -> bool:
    """Whether the model has PISR's predictor."""
    return any(isinstance(module, PISRTransformerPredictor) for module in model.modules())


@torch.inference_mode()
def observe(
    model: nn.Module, sample: dict[str, Any], internals: bool = False, called: str = "the model"
) -> Observation:
    """Run a model in evaluation mode on one test sample (`image`, `height`, `width`) and keep what it says.

    `internals`: with what PISR computes on its way. InputError when the model has no PISR then, and when what
    it predicts is not finite (`called`: its name in the message).
    """
    head: Any = model.sem_seg_head
    backbone: Any = model.backbone
    recorder: Any = recorded_internals(model) if internals else nullcontext([])
    predicted: list[Mapping[str, Any]] = []
    inputs: list[Tensor] = []

    def keep(module: nn.Module, given: Any, outputs: Mapping[str, Any]) -> None:
        for stage in (outputs.get("initial", outputs), outputs):
            if not all(bool(stage[key].isfinite().all()) for key in ("pred_logits", "pred_masks")):
                raise bad_input(f"{called} gives values that are not finite; did its training diverge?")
        predicted.append(outputs)

    with (
        recorder as recorded,
        hooked(head.predictor.register_forward_hook, keep),
        hooked(backbone.register_forward_pre_hook, lambda module, given: inputs.append(given[0])),
    ):
        result = model([sample])[0]
    (outputs,), (tensor,) = predicted, inputs
    return Observation(
        result=result,
        initial=_stage(outputs.get("initial", outputs)),
        final=_stage(outputs),
        internals=_arrays(recorded[0]) if recorded else {},
        padded=(tensor.shape[-2], tensor.shape[-1]),
        resized=(sample["image"].shape[-2], sample["image"].shape[-1]),
        size=(sample["height"], sample["width"]),
    )


@contextmanager
def hooked(register: Callable[..., Any], hook: Callable[..., Any]) -> Iterator[None]:
    """A hook for the time of a `with`; what it returns is not looked at."""

    def silent(*arguments: Any) -> None:
        hook(*arguments)

    handle = register(silent)
    try:
        yield
    finally:
        handle.remove()


def _stage(outputs: Mapping[str, Tensor]) -> Stage:
    probabilities = outputs["pred_logits"][0].float().softmax(dim=-1)[..., :-1]
    return Stage(probabilities.cpu().numpy(), outputs["pred_masks"][0].float().sigmoid().cpu().numpy())


def _arrays(internals: Any) -> dict[str, np.ndarray | None]:
    named = {field.name: getattr(internals, field.name) for field in fields(internals)}
    return {name: None if value is None else value[0].cpu().numpy() for name, value in named.items()}
