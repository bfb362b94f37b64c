"""MaskFormer as detectron2 components: importing this registers them and the ADE20K panoptic data sets."""

import mask_former.criterion
import mask_former.data
import mask_former.head
import mask_former.model
import mask_former.pixel_decoder
import mask_former.predictor
import mask_former.timm_backbone  # noqa: F401
from mask_former.config import add_mask_former_config

__all__ = ["add_mask_former_config"]
