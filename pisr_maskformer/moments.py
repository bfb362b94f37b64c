"""Mean and covariance of features over pixels, from the pieces of a map, and their gradient.

Shapes: B batch · D channels · n pixels of a piece · R weights, the last one 1 for valid pixels
    F features B×D×H×W · sums of the weights times F, B×R×D, and of the weights, B×R

The pieces' moments, each around its own mean, become those of the whole by Chan's formula. The covariance C
is symmetric: its gradient with respect to F is one product, (dC + dC^T)(F - mu) / count. pixel_sums.py takes
the pieces.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

BLOCKS = 4  # of rows, at most, of a symmetric product: 3/8 of it is not computed where 4 divides D


class FeatureMoments(NamedTuple):
    """What the pixels of a feature map have in common, per image; all zero where no pixel is valid."""

    mean: Tensor  # mu, B×D
    covariance: Tensor  # the mean of (F - mu)(F - mu)^T, B×D×D
    pixels: Tensor  # how many are valid, B

    def squared_norm(self) -> Tensor:
        """The mean of |F|^2 over pixels, B."""
        return self.mean.square().sum(1) + self.covariance.diagonal(dim1=1, dim2=2).sum(1)

    def affine(self, matrix: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of every channel of A F + c, both B×D; A B×D×D, c B×D."""
        mean = torch.baddbmm(offset[..., None], matrix, self.mean[..., None]).squeeze(-1)
        return mean, ((matrix @ self.covariance) * matrix).sum(-1).clamp(min=0)


def centred(values: Tensor, sums: Tensor, areas: Tensor, inside: Tensor | None) -> Tensor:
    """The values of a piece less their own mean, zero outside: B×D×n."""
    mean = sums[:, -1] / areas[:, -1:].clamp(min=1)
    apart = values - mean[..., None]
    return apart if inside is None else apart.mul_(inside)


def add_products(total: list[Tensor] | None, piece: Tensor) -> list[Tensor]:
    """`total` and X X^T of a centred piece X, B×D×n: blocks of rows, each from the diagonal to the right."""
    rows = math.ceil(piece.shape[1] / BLOCKS)
    products = [
        piece[:, start : start + rows] @ piece[:, start:].transpose(1, 2)
        for start in range(0, piece.shape[1], rows)
    ]
    return products if total is None else [sum_.add_(one) for sum_, one in zip(total, products, strict=True)]


def whole(blocks: list[Tensor]) -> Tensor:
    """The symmetric matrix, B×D×D, of the blocks of `add_products`."""
    batch, _, channels = blocks[0].shape
    matrix = blocks[0].new_empty((batch, channels, channels))
    end = 0
    for block in blocks:
        start, end = end, end + block.shape[1]
        matrix[:, start:, start:end] = block.transpose(1, 2)
        matrix[:, start:end, start:] = block
    return matrix


def joined(sums: Tensor, areas: Tensor, blocks: list[Tensor]) -> tuple[Tensor, ...]:
    """Mean, covariance and number of all pixels, from the pieces' sums and areas and all centred products."""
    sums, counts = sums[:, -1], areas[:, -1:]  # of F, B×D×pieces, and of valid pixels, B×1×pieces
    count = counts.sum((1, 2))
    total = count.clamp(min=1)[:, None, None]
    mean = sums.sum(-1, keepdim=True) / total
    apart = sums / counts.clamp(min=1) - mean
    covariance = torch.baddbmm(whole(blocks) / total, apart * (counts / total), apart.transpose(1, 2))
    return mean.squeeze(-1), covariance, count


def gradient_of_moments(
    gradients: list[Tensor], moments: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """S, B×D×D, and t, B×D: the gradient with respect to a pixel's F is S F + t. None without moments."""
    if not moments:
        return None, None
    (d_mean, d_covariance), (mean, count) = gradients, moments
    total = count.clamp(min=1)[:, None]
    curvature = (d_covariance + d_covariance.transpose(1, 2)) / total[..., None]
    return curvature, d_mean / total - (curvature @ mean[..., None]).squeeze(-1)
