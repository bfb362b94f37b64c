"""One pass over the pixels of a feature map for all that PISR sums there, forward and backward.

Shapes: B batch · D channels · H×W feature resolution · Q region maps · K of them chosen · n pixels of a piece
    F features B×D×H×W, of any floating type · s maps B×Q×H×W

Of the inputs autograd keeps what was given, and nothing else as large. Everything is summed in float32 or
better, a piece of the map after the other: what is made of a piece (its float32 copy, its weights) is let
go as the next one's is made, and made again in the backward pass. Autocast is off, in either direction.
Contiguous and channels_last features are read as they lie.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pisr_maskformer.moments import FeatureMoments, add_products, centred, gradient_of_moments, joined

PIECE = 9216  # pixels, at most: 9 MiB of 256 channels in float32
ROW = 64  # pixels; it divides PIECE, and every piece but the last: vectors and threads share that evenly


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
    """The sums are linear in F and in the weights; the moments: moments.py.

    A last weight, 1 for valid pixels, sums F itself, and in the backward pass carries what is the same for
    every pixel.
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
                    products = add_products(products, centred(values, sums, areas, inside))
            sums, areas = (torch.stack(each, dim=-1) for each in zip(*found, strict=True))  # …×pieces
            of_features = () if products is None else joined(sums, areas, products)
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
        d_maps = _like(maps) if for_maps else None
        d_factor = _like(factor) if for_factor else None
        with torch.autocast(features.device.type, enabled=False):
            curvature, slope = gradient_of_moments(d_moments, moments)
            slope = d_sums.new_zeros(d_sums[:, 0].shape) if slope is None else slope
            of_sums = torch.cat([d_sums, slope[:, None]], dim=1).transpose(1, 2)  # B×D×(Q+K+1)
            for part in _pieces(features):
                values, inside = _piece(features, part), _inside(valid_pixels, part, maps)
                under = _chosen(maps, chosen, part)
                if d_features is not None:
                    weights = _weights(maps, under, factor, inside, part)
                    _set_piece(d_features, d_same, part, of_sums, weights, curvature, values, inside)
                    del weights  # as large as what comes next
                if d_maps is not None or d_factor is not None:
                    _set_weights(
                        d_maps, d_factor, part, d_sums @ values, d_areas, under, chosen, factor, inside
                    )
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


def _weights(maps: Tensor, under: Tensor, factor: Tensor, inside: Tensor | None, part: slice) -> Tensor:
    """All maps, the chosen ones (`under`, B×K×n) times the factor, and 1; zero outside: B×(Q+K+1)×n."""
    rows = (maps.shape[1], under.shape[1], 1)
    weights = maps.new_empty((len(maps), sum(rows), under.shape[2]))  # filled without a copy in between
    of_maps, of_chosen, ones = weights.split(rows, dim=1)
    of_maps.copy_(maps.flatten(2)[..., part])
    _write(of_chosen, torch.mul, under, factor.flatten(2)[..., part])
    ones.fill_(1)
    return weights if inside is None else weights.mul_(inside)


def _like(maps: Tensor) -> Tensor:
    """An empty tensor that lies as `maps`, B×R×H×W, do, and whose pixels can be flattened without a copy."""
    by_pixel = maps.stride(1) == 1 and maps.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(maps, memory_format=torch.channels_last if by_pixel else torch.contiguous_format)


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


def _write(target: Tensor, function: Callable[..., Tensor], *given: Tensor) -> None:
    """target = function(*given) without a copy. torch.compile refuses such an `out`, and fuses the copy."""
    if torch.compiler.is_compiling():
        target.copy_(function(*given))
    else:
        function(*given, out=target)


def _set_weights(
    d_maps: Tensor | None,
    d_factor: Tensor | None,
    part: slice,
    products: Tensor,
    d_areas: Tensor,
    under: Tensor,
    chosen: Tensor,
    factor: Tensor,
    inside: Tensor | None,
) -> None:
    """The gradients of maps and factor, of a part, from that of the weights: dG F (`products`) + d_areas.

    Overwrites `products` and `under`, the chosen maps. The maps' d_areas are added last, while their gradient
    is written to its place: one pass less.
    """
    rows = (products.shape[1] - under.shape[1], under.shape[1])
    d_all, d_chosen = products.split(rows, dim=1)
    areas_all, areas_chosen = d_areas[..., None].split(rows, dim=1)
    d_chosen.add_(areas_chosen)
    if d_factor is not None:
        summed = under.mul_(d_chosen).sum(1, keepdim=True)
        d_factor.flatten(2)[..., part] = summed if inside is None else summed.mul_(inside)
    if d_maps is not None:
        d_chosen.mul_(factor.flatten(2)[..., part])
        d_all.scatter_add_(1, chosen[..., None].expand_as(d_chosen), d_chosen)
        target = d_maps.flatten(2)[..., part]
        _write(target, torch.add, d_all, areas_all)
        if inside is not None:
            target.mul_(inside)
