"""The MaskFormer of Hugging Face's transformers, trained as its documentation has it: what others would use.

Its network has no transformer encoder in the pixel decoder, and batch norms that learn statistics. It is not
among this project's requirements: `pip install transformers`, or `pip install --target FOLDER --no-deps
transformers safetensors tokenizers huggingface_hub regex` and FOLDER on PYTHONPATH.

Shapes: B images · T targets of one image · S side of an image.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

INSTALL = "transformers is not installed, its rows are left out; to have them: pip install transformers"
BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}  # of a ResNet by depth


def build_peer(depth: int, num_classes: int) -> torch.nn.Module | None:
    """The model on the CPU, in training mode, with deep supervision; None when it is not installed."""
    try:
        from transformers import (
            DetrConfig,
            MaskFormerConfig,
            MaskFormerForInstanceSegmentation,
            ResNetConfig,
        )
    except ImportError:
        return None
    small = depth < 50
    backbone = ResNetConfig(
        depths=list(BLOCKS[depth]),
        hidden_sizes=[64, 128, 256, 512] if small else [256, 512, 1024, 2048],
        layer_type="basic" if small else "bottleneck",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=DetrConfig(num_queries=100, decoder_layers=6),
        use_auxiliary_loss=True,
        output_auxiliary_logits=True,
        num_labels=num_classes,
    )
    model: torch.nn.Module = MaskFormerForInstanceSegmentation(config)
    return model.train()


def peer_step(
    model: torch.nn.Module,
    images: Tensor,
    masks: Sequence[Tensor],
    labels: Sequence[Tensor],
    *,
    max_norm: float,
    amp_dtype: torch.dtype | None = None,
) -> Callable[[], Any]:
    """A function that does one step on `images` B×3×S×S, float `masks` T×S×S and `labels` (T,) of each."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=1e-4)

    def step() -> float:
        with torch.autocast(images.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
            outputs = model(
                pixel_values=images,
                mask_labels=list(masks),
                class_labels=list(labels),
                output_hidden_states=True,  # without, this release has nothing to supervise deeply
            )
        outputs.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        optimizer.step()
        optimizer.zero_grad()  # the next call takes them anew, and its peak counts them
        return float(outputs.loss.detach())

    return step


def peer_panoptic(
    logits: Tensor,
    masks: Tensor,
    *,
    size: tuple[int, int],
    stuff: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
) -> Callable[[], Any] | None:
    """A function that makes one image's panoptic result from class logits Q×(C+1) and mask logits Q×h×w.

    None when it is not installed. Its masks go to 384×384 before they go to `size`, so its result is another.
    """
    try:
        from transformers import MaskFormerImageProcessor
        from transformers.models.maskformer.modeling_maskformer import (
            MaskFormerForInstanceSegmentationOutput,
        )
    except ImportError:
        return None
    outputs = MaskFormerForInstanceSegmentationOutput(
        class_queries_logits=logits[None], masks_queries_logits=masks[None]
    )
    return partial(
        MaskFormerImageProcessor().post_process_panoptic_segmentation,
        outputs,
        threshold=score_threshold,
        overlap_mask_area_threshold=overlap_threshold,
        label_ids_to_fuse=set(stuff),
        target_sizes=[size],
    )
