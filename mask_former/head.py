"""The segmentation head: pixel decoder, then query decoder."""

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.checkpoint_names import modernise_names
from mask_former.errors import InputError
from mask_former.predictor import Predictions
from mask_former.registries import PREDICTOR_REGISTRY, choose

ENCODED = "transformer_encoder"


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """Backbone features to predictions; which of them the queries attend to is `memory_feature`."""

    @configurable
    def __init__(self, *, pixel_decoder: nn.Module, predictor: nn.Module, memory_feature: str) -> None:
        """`memory_feature`: name of a backbone output, or "transformer_encoder" for the pixel decoder's."""
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.memory_feature = memory_feature
        self._register_load_state_dict_pre_hook(
            lambda state, prefix, *_: modernise_names(state, head_prefix=prefix)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        memory_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        decoder_name = cfg.MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME
        decoder_class = choose(SEM_SEG_HEADS_REGISTRY, decoder_name, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME")
        pixel_decoder = decoder_class(cfg, input_shape)
        if memory_feature == ENCODED:
            if not pixel_decoder.gives_encoded:
                raise InputError(
                    f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE {ENCODED!r} needs "
                    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME 'TransformerEncoderPixelDecoder', "
                    f"not {type(pixel_decoder).__name__!r}"
                )
            in_channels = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM
        elif memory_feature in input_shape:
            in_channels = input_shape[memory_feature].channels
        else:
            valid = ", ".join([*input_shape, ENCODED])
            raise InputError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE: no feature {memory_feature!r}; there are {valid}"
            )
        predictor_name = cfg.MODEL.MASK_FORMER.PREDICTOR_NAME
        predictor_class = choose(PREDICTOR_REGISTRY, predictor_name, "MODEL.MASK_FORMER.PREDICTOR_NAME")
        return {
            "pixel_decoder": pixel_decoder,
            "predictor": predictor_class(cfg, in_channels),
            "memory_feature": memory_feature,
        }

    def forward(
        self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]] | None = None
    ) -> Predictions:
        """`features`: name to B×C_i×H_i×W_i; `image_sizes`: (height, width) in pixels before padding."""
        mask_features, encoded = self.pixel_decoder(features)
        memory = encoded if self.memory_feature == ENCODED else features[self.memory_feature]
        return self.predictor(memory, mask_features, image_sizes)
