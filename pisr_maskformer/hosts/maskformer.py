"""PISR on MaskFormer (supplement D.3): importing this module registers its predictor and its criterion.

    MODEL.MASK_FORMER.PREDICTOR_NAME: PISRTransformerPredictor
    MODEL.MASK_FORMER.CRITERION_NAME: TwoStageSetCriterion

Shapes: B batch · Q queries · C classes without "no object" · L decoder layers · D mask-feature channels ·
D_h query channels · H×W size of the mask features (stride 4) · h×w size of the memory.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from mask_former.criterion import LossTotals, SetCriterion, by_layer
from mask_former.errors import InputError
from mask_former.matcher import Target
from mask_former.model import checked_thing_ids
from mask_former.predictor import Prediction, Predictions, TransformerPredictor
from mask_former.registries import CRITERION_REGISTRY, PREDICTOR_REGISTRY
from mask_former.transfer import to_device
from pisr_maskformer.config import PISRSettings, SettingError, settings_from
from pisr_maskformer.criterion import TwoStageCriterion
from pisr_maskformer.module import PISR, PISRInternals
from pisr_maskformer.pixel_sums import at_least_float32
from pisr_maskformer.variants import INFERENCE_STAGE

logger = logging.getLogger(__name__)


class PISRPredictions(Predictions):
    """Both predictions: the final one at the top, so that inference takes it as it takes MaskFormer's."""

    initial: Predictions  # the base network's, with its earlier layers
    statistics: dict[str, Tensor]  # PISR.last_statistics; empty in evaluation


@contextmanager
def settings_as_input() -> Iterator[None]:
    """What PISR says of a wrong setting becomes an InputError, which tools show as one line."""
    try:
        yield
    except SettingError as error:
        raise InputError(str(error)) from error


def bad_input(message: str) -> InputError:
    """An error that tools show as one line; for parts of this package that do not know mask_former."""
    return InputError(message)


def require_both_parts(cfg: CfgNode) -> None:
    """InputError when PISR's predictor or its criterion is configured with MaskFormer's other half."""
    names = cfg.MODEL.MASK_FORMER
    if names.PREDICTOR_NAME == "TransformerPredictor" or names.CRITERION_NAME == "SetCriterion":
        raise InputError(
            f"MODEL.MASK_FORMER: PREDICTOR_NAME {names.PREDICTOR_NAME} does not go with CRITERION_NAME "
            f"{names.CRITERION_NAME}; PISR needs PISRTransformerPredictor and TwoStageSetCriterion"
        )


@PREDICTOR_REGISTRY.register()
class PISRTransformerPredictor(TransformerPredictor):
    """MaskFormer's predictor, PISR on its prediction, and a second prediction by the same layers.

    What PISR adds lies under `pisr.`; everything else is named as in a MaskFormer checkpoint. With O_f and
    O_q as they start, at zero, the final prediction equals the first bit for bit.
    """

    @configurable
    def __init__(
        self,
        in_channels: int,
        *,
        thing_ids: Iterable[int],
        settings: PISRSettings | None = None,
        stride: int = 4,
        **baseline: Any,
    ) -> None:
        """`thing_ids`: contiguous. `stride`: of the mask features, in pixels. The rest: the base class's."""
        super().__init__(in_channels, **baseline)
        settings = settings or PISRSettings()
        self.deep_supervision = self.deep_supervision and settings.supervises_earlier_layers
        self.stride = stride
        self.recorded: list[PISRInternals] | None = None
        with settings_as_input():
            self.pisr = PISR(
                channels=self.mask_dim,
                query_channels=self.hidden_dim,
                num_classes=self.num_classes,
                thing_ids=thing_ids,
                settings=settings,
            )
        self.infers_final = INFERENCE_STAGE[settings.inference_stage]

    @classmethod
    def from_config(cls, cfg: CfgNode, in_channels: int) -> dict[str, Any]:
        require_both_parts(cfg)
        with settings_as_input():
            settings = settings_from(cfg)
        things = checked_thing_ids(cfg)
        if settings.num_instances and not things:
            logger.warning(
                "no class is a thing: the %d slots of MODEL.PISR.NUM_INSTANCES stay empty; 0 saves them",
                settings.num_instances,
            )
        return {
            **super().from_config(cfg, in_channels),
            "thing_ids": things,
            "settings": settings,
            "stride": cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE,
        }

    def forward(
        self, memory: Tensor, mask_features: Tensor, image_sizes: list[tuple[int, int]] | None = None
    ) -> Predictions:
        """`memory` B×C_in×h×w, `mask_features` F B×D×H×W, `image_sizes` before padding, (height, width).

        Returns PISRPredictions; in evaluation with MODEL.PISR.INFERENCE_STAGE "initial", the base network's
        Predictions alone.
        """
        decoded = self.decode(memory)
        initial = self.predict_layers(decoded, mask_features)
        if not (self.training or self.infers_final):
            return initial
        related = self.pisr(
            mask_features,
            region_maps=at_least_float32(initial["pred_masks"]).sigmoid(),
            class_probs=at_least_float32(initial["pred_logits"]).softmax(dim=-1)[..., :-1],
            queries=decoded[-1],
            valid_pixels=valid_pixels(image_sizes, mask_features, self.stride),
            return_internals=self.recorded is not None,
        )
        if self.recorded is not None:
            self.recorded.append(related.internals)
        final: Prediction = {
            "pred_logits": self.class_embed(related.queries),
            "pred_masks": related.features.masks(self.mask_embed(related.queries)),
        }
        statistics = self.pisr.last_statistics if self.training else {}
        return PISRPredictions(**final, aux_outputs=[], initial=initial, statistics=statistics)


def valid_pixels(
    image_sizes: list[tuple[int, int]] | None, mask_features: Tensor, stride: int
) -> Tensor | None:
    """Pixels of the mask features whose centre lies inside the image: B×1×H×W bool, None when all do."""
    height, width = mask_features.shape[-2:]
    bottom, right = (height - 0.5) * stride, (width - 0.5) * stride  # centre of the last pixel
    if image_sizes is None or all(bottom < size[0] and right < size[1] for size in image_sizes):
        return None
    sides = torch.tensor([side for size in image_sizes for side in size])
    heights, widths = to_device([sides], mask_features.device)[0].view(-1, 2).unbind(1)
    rows = (torch.arange(height, device=mask_features.device) + 0.5) * stride < heights[:, None]
    columns = (torch.arange(width, device=mask_features.device) + 0.5) * stride < widths[:, None]
    return (rows[:, :, None] & columns[:, None, :])[:, None]


@contextmanager
def recorded_internals(model: nn.Module) -> Iterator[list[PISRInternals]]:
    """Collect what PISR computes on its way in every forward inside, one PISRInternals per batch.

        with torch.no_grad(), recorded_internals(model) as internals:
            model(inputs)
        internals[0].weights

    Raises InputError when `model` has no PISR, or one without feedback, which computes nothing.
    """
    predictors = [module for module in model.modules() if isinstance(module, PISRTransformerPredictor)]
    if len(predictors) == 1 and not predictors[0].pisr.feeds_back:
        raise InputError("MODEL.PISR.FEEDBACK is 'none': PISR computes nothing to look at; name another one")
    if len(predictors) != 1:
        raise InputError(
            "the model has no PISR; set MODEL.MASK_FORMER.PREDICTOR_NAME to PISRTransformerPredictor"
        )
    predictors[0].recorded = []
    try:
        yield predictors[0].recorded
    finally:
        predictors[0].recorded = None


@CRITERION_REGISTRY.register()
class TwoStageSetCriterion(SetCriterion):
    """MaskFormer's loss on both predictions, L = L_final + gamma * L_initial (Equation 1).

    Names and weights: `TwoStageCriterion`. Checkpoint entries are SetCriterion's.
    """

    statistics: dict[str, Tensor]  # PISR's of the last call by name in the log, for the training step

    @configurable
    def __init__(self, *, initial_loss_weight: float, initial_loss_scope: str, **baseline: Any) -> None:
        """gamma, what it multiplies, and SetCriterion's arguments."""
        super().__init__(**baseline)
        with settings_as_input():
            self.two_stage = TwoStageCriterion(
                self.weight_dict,
                initial_loss_weight=initial_loss_weight,
                initial_loss_scope=initial_loss_scope,
            )
        self.weight_dict = self.two_stage.weight_dict

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        require_both_parts(cfg)
        with settings_as_input():
            settings = settings_from(cfg)
        return {
            **super().from_config(cfg),
            "initial_loss_weight": settings.initial_loss_weight,
            "initial_loss_scope": settings.initial_loss_scope,
        }

    def forward(  # type: ignore[override]  # needs both stages
        self, outputs: PISRPredictions, targets: list[Target], totals: LossTotals | None = None
    ) -> dict[str, Tensor]:
        """Unweighted losses of both stages by name; PISR's numbers for the log stay in `statistics`.

        Both stages are matched and judged in one go, and divide by the same `totals` (see SetCriterion).
        """
        self.statistics = {f"pisr/{name}": value for name, value in outputs["statistics"].items()}
        criterion = partial(self.losses, totals=totals)
        return self.two_stage.together(criterion, by_layer(outputs), by_layer(outputs["initial"]), targets)
