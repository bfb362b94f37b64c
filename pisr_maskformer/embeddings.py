"""F', the per-pixel embeddings of the second prediction, as a map or folded into whoever reads them.

Shapes: B batch · Q queries · D feature channels · H×W feature resolution
    F features B×D×H×W · e mask embeddings of queries B×Q×D · A B×D×D and c B×D, one per image

Where F' = F + A F + c, a mask is <e, F'> = <e + e A, F> + <e, c>: no second map is ever made.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pisr_maskformer.attention import AffineFeatures


class MapEmbeddings(NamedTuple):
    """F' as the map itself."""

    features: Tensor  # F', B×D×H×W

    def on_pixels(self) -> Tensor:
        """F', B×D×H×W."""
        return self.features

    def masks(self, embeddings: Tensor) -> Tensor:
        """Mask logits <e, F'> of the embeddings, B×Q×H×W."""
        return torch.bmm(embeddings, self.features.flatten(2)).unflatten(2, self.features.shape[2:])


class FoldedEmbeddings(NamedTuple):
    """F' = F + A F + c."""

    features: Tensor  # F, B×D×H×W
    residual: AffineFeatures  # A and c, in float32 or better

    def on_pixels(self) -> Tensor:
        """F', B×D×H×W, in the type of F; for hosts that predict from the map."""
        with torch.autocast(self.features.device.type, enabled=False):
            residual = self.residual.on_pixels(self.features)
        return self.features + residual.to(self.features.dtype)

    def masks(self, embeddings: Tensor) -> Tensor:
        """Mask logits <e, F'> of the embeddings, B×Q×H×W. With A and c zero they are those of F, bit for bit.

        Only the product with F runs in half precision under autocast, as it does without PISR.
        """
        with torch.autocast(self.features.device.type, enabled=False):
            wide = embeddings.to(self.residual.matrix.dtype)
            folded = wide + wide @ self.residual.matrix
            shift = wide @ self.residual.offset[..., None]  # B×Q×1
        masks = torch.bmm(folded.to(embeddings.dtype), self.features.flatten(2))
        masks.add_(
            shift.to(masks.dtype)
        )  # in place, which autograd has no trouble with: a bmm keeps its inputs
        return masks.unflatten(2, self.features.shape[2:])
