"""One pass over the pixels of a feature map for all that PISR sums there, forward and backward.

Shapes: B batch · D channels · H×W feature resolution · Q region maps · K of them chosen · n pixels of a piece
    F features B×D×H×W, of any floating type · s maps B×Q×H×W

Of the inputs autograd keeps what was given, and nothing else as large. Everything is summed in float32 or
better, a piece of the map after the other: what is made of a piece (its float32 copy, its weights) is gone
before the next, and made again in the backward pass. Autocast is off, in either direction. Contiguous and
channels_last features are read as they lie.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 9216  # pixels, at most: 9 MiB of 256 channels in float32
ROW = 64  # pixels; it divides PIECE, and every piece but the last: vectors and threads share that evenly
BLOCKS = 4  # of the rows of a symmetric product: 3/8 of it are not computed


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


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def pixel_sums(
    features: Tensor,
    maps: Tensor,
    valid_pixels: Tensor | None = None,
    chosen: Tensor | None = None,
    factor: Tensor | None = None,
    moments: bool = False,
) -> tuple[Tensor, Tensor, Tensor, FeatureMoments | None]:
    """F, sums over valid pixels of w F, B×(Q+K)×D, and of w, B×(Q+K), and the moments of F if asked for.

    The F that is returned is the one given. Whoever goes on with it spares the backward pass a map: its
    gradient is taken up where that of the sums is made, instead of being added to it.

    The weights w are all `maps`, then the `chosen` ones (B×K int64, different ones in every image; None:
    none) times `factor` (B×1×H×W). `valid_pixels`: B×1×H×W bool; None: all.
    """
    if chosen is None:
        chosen, factor = maps.new_empty((maps.shape[0], 0), dtype=torch.long), maps[:, :1].detach()
    same, sums, areas, *found = _PixelSums.apply(features, maps, factor, chosen, valid_pixels, moments)
    return same, sums, areas, FeatureMoments(*found) if moments else None


class _PixelSums(torch.autograd.Function):
    """The pieces' moments, each around its own mean, become those of the whole by Chan's formula.

    The covariance C is symmetric, so that its gradient with respect to F is one product,
    (dC + dC^T)(F - mu) / count. A last weight, 1 for valid pixels, sums F itself, and in the backward pass
    carries what is the same for every pixel.
    """

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        maps: Tensor,
        factor: Tensor,
        chosen: Tensor,
        valid_pixels: Tensor | None,
        moments: bool,
    ) -> tuple[Tensor, ...]:
        found, products = [], None
        with torch.autocast(features.device.type, enabled=False):
            for part in _pieces(features):
                values, inside = _piece(features, part), _inside(valid_pixels, part, maps)
                weights = _weights(maps, _chosen(maps, chosen, part), factor, inside, part)
                sums, areas = weights @ values.transpose(1, 2), weights.sum(-1)
                found.append((sums, areas))
                if moments:
                    centred = _centred(values, sums, areas, inside)
                    products = _add_products(products, centred)
            sums, areas = (torch.stack(each, dim=-1) for each in zip(*found, strict=True))  # …×pieces
            of_features = () if products is None else _joined(sums, areas, _whole(products))
            sums, areas = sums.sum(-1), areas.sum(-1)
        ctx.save_for_backward(features, maps, factor, chosen, valid_pixels, *of_features[::2])
        ctx.mark_non_differentiable(*of_features[2:])
        ctx.set_materialize_grads(False)  # zeros for an F that nobody goes on with would be as large as F
        return features.view_as(features), sums[:, :-1], areas[:, :-1], *of_features

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_same: Tensor | None, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        features, maps, factor, chosen, valid_pixels, *moments = ctx.saved_tensors
        rows = maps.shape[1] + chosen.shape[1]
        shapes = [(rows, features.shape[1]), (rows,), (features.shape[1],), (features.shape[1],) * 2]
        d_sums, d_areas, *d_moments = (
            maps.new_zeros((len(maps), *shape)) if gradient is None else gradient
            for gradient, shape in zip(gradients, shapes, strict=False)
        )
        for_features, for_maps, for_factor, *_ = ctx.needs_input_grad
        d_features = _like(features) if for_features else None
        d_maps = torch.empty_like(maps) if for_maps else None
        d_factor = torch.empty_like(factor) if for_factor else None
        with torch.autocast(features.device.type, enabled=False):
            curvature, slope = _gradient_of_moments(d_moments, moments)
            slope = d_sums.new_zeros(d_sums[:, 0].shape) if slope is None else slope
            of_sums = torch.cat([d_sums, slope[:, None]], dim=1).transpose(1, 2)  # B×D×(Q+K+1)
            for part in _pieces(features):
                values, inside = _piece(features, part), _inside(valid_pixels, part, maps)
                of_chosen = _chosen(maps, chosen, part)
                if d_features is not None:
                    weights = _weights(maps, of_chosen, factor, inside, part)
                    _set_piece(d_features, d_same, part, of_sums, weights, curvature, values, inside)
                    del weights  # as large as what comes next
                if d_maps is None and d_factor is None:
                    continue
                # B×(Q+K)×n, less d_areas: adding it to the maps' rows as they are written spares a pass.
                d_weights = d_sums @ values
                of_maps, of_heatmaps = d_weights.split((maps.shape[1], chosen.shape[1]), dim=1)
                of_heatmaps.add_(d_areas[:, maps.shape[1] :, None])
                if d_factor is not None:
                    products = of_chosen.mul_(of_heatmaps).sum(1, keepdim=True)
                    d_factor.flatten(2)[..., part] = products if inside is None else products.mul_(inside)
                if d_maps is not None:
                    of_heatmaps.mul_(factor.flatten(2)[..., part])
                    of_maps.scatter_add_(1, chosen[..., None].expand_as(of_heatmaps), of_heatmaps)
                    target = d_maps.flatten(2)[..., part]
                    torch.add(of_maps, d_areas[:, : maps.shape[1], None], out=target)
                    if inside is not None:
                        target.mul_(inside)
        return d_features, d_maps, d_factor, None, None, None


def _pieces(features: Tensor) -> Iterator[slice]:
    """Slices that cover all pixels, of about the same size: a small rest costs more than its share."""
    pixels = features.shape[2] * features.shape[3]
    size = math.ceil(pixels / math.ceil(pixels / PIECE) / ROW) * ROW
    return (slice(start, min(start + size, pixels)) for start in range(0, pixels, size))


def _piece(features: Tensor, part: slice) -> Tensor:
    """B×D×n, in float32 or better."""
    return at_least_float32(features.flatten(2)[..., part])


def _inside(valid_pixels: Tensor | None, part: slice, maps: Tensor) -> Tensor | None:
    """1 for the valid pixels of the part, else 0, B×1×n; None where all are valid."""
    return None if valid_pixels is None else valid_pixels.flatten(2)[..., part].to(maps.dtype)


def _chosen(maps: Tensor, chosen: Tensor, part: slice) -> Tensor:
    """The chosen maps, B×K×n."""
    images = torch.arange(len(chosen), device=chosen.device)[:, None]
    return maps.flatten(2)[..., part][images, chosen]  # half the time of a gather


def _weights(maps: Tensor, of_chosen: Tensor, factor: Tensor, inside: Tensor | None, part: slice) -> Tensor:
    """All maps, the chosen ones (B×K×n) times the factor, and 1; zero outside: B×(Q+K+1)×n."""
    rows = (maps.shape[1], of_chosen.shape[1], 1)
    weights = maps.new_empty((len(maps), sum(rows), of_chosen.shape[2]))  # filled without a copy in between
    of_maps, suppressed, ones = weights.split(rows, dim=1)
    of_maps.copy_(maps.flatten(2)[..., part])
    torch.mul(of_chosen, factor.flatten(2)[..., part], out=suppressed)
    ones.fill_(1)
    return weights if inside is None else weights.mul_(inside)


def _centred(values: Tensor, sums: Tensor, areas: Tensor, inside: Tensor | None) -> Tensor:
    """The values of a piece less their own mean, zero outside: B×D×n."""
    mean = sums[:, -1] / areas[:, -1:].clamp(min=1)
    centred = values - mean[..., None]
    return centred if inside is None else centred.mul_(inside)


def _add_products(total: list[Tensor] | None, centred: Tensor) -> list[Tensor]:
    """`total` and X X^T of a piece X, in blocks of rows, each from the diagonal on: the rest is symmetric."""
    rows = math.ceil(centred.shape[1] / BLOCKS)
    products = [
        centred[:, start : start + rows] @ centred[:, start:].transpose(1, 2)
        for start in range(0, centred.shape[1], rows)
    ]
    return products if total is None else [sum_.add_(one) for sum_, one in zip(total, products, strict=True)]


def _whole(blocks: list[Tensor]) -> Tensor:
    """The symmetric matrix, B×D×D, of the blocks of `_add_products`."""
    whole = blocks[0].new_empty((*blocks[0].shape[:1], *blocks[0].shape[2:] * 2))
    end = 0
    for block in blocks:
        start, end = end, end + block.shape[1]
        whole[:, start:, start:end] = block.transpose(1, 2)
        whole[:, start:end, start:] = block
    return whole


def _joined(sums: Tensor, areas: Tensor, products: Tensor) -> tuple[Tensor, ...]:
    """Mean, covariance and number of all pixels, from the pieces' sums and areas and all centred products."""
    sums, counts = sums[:, -1], areas[:, -1:]  # of F, B×D×pieces, and of valid pixels, B×1×pieces
    count = counts.sum((1, 2))
    total = count.clamp(min=1)[:, None, None]
    mean = sums.sum(-1, keepdim=True) / total
    apart = sums / counts.clamp(min=1) - mean
    covariance = torch.baddbmm(products / total, apart * (counts / total), apart.transpose(1, 2))
    return mean.squeeze(-1), covariance, count


def _gradient_of_moments(
    gradients: list[Tensor], moments: list[Tensor]
) -> tuple[Tensor | None, Tensor | None]:
    """S, B×D×D, and t, B×D: the gradient with respect to a pixel's F is S F + t. None without moments."""
    if not moments:
        return None, None
    (d_mean, d_covariance), (mean, count) = gradients, moments
    total = count.clamp(min=1)[:, None]
    curvature = (d_covariance + d_covariance.transpose(1, 2)) / total[..., None]
    return curvature, d_mean / total - (curvature @ mean[..., None]).squeeze(-1)


def _like(features: Tensor) -> Tensor:
    """An empty map that lies as `features` does, and whose pixels can be flattened without a copy."""
    by_pixel = features.stride(1) == 1 and features.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(
        features, memory_format=torch.channels_last if by_pixel else torch.contiguous_format
    )


def _set_piece(
    gradient: Tensor,
    d_same: Tensor | None,
    part: slice,
    rows: Tensor,
    weights: Tensor,
    curvature: Tensor | None,
    values: Tensor,
    inside: Tensor | None,
) -> None:
    """rows @ weights + S F + the gradient of F elsewhere, written into its part of the gradient."""
    target = gradient.flatten(2)[..., part]
    piece = target if target.dtype == values.dtype else torch.empty_like(target, dtype=values.dtype)
    if d_same is not None:
        piece.copy_(d_same.flatten(2)[..., part])
    piece.baddbmm_(rows, weights, beta=0 if d_same is None else 1)  # 0: what lay there is not read
    if curvature is not None:
        piece.baddbmm_(curvature, values if inside is None else values * inside)
    if piece is not target:
        target.copy_(piece)
