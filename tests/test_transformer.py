"""Transformer layers against torch.nn's own, what depends on positions and order, and the sine embedding.

Shapes: B batch · N memory positions · Q queries · D width · L layers.
"""

import math

import pytest
import torch
from torch import nn

from mask_former.position import sine_position
from mask_former.transformer import (
    Decoder,
    DecoderLayer,
    Encoder,
    EncoderLayer,
    EncoderTransformer,
    QueryTransformer,
)

WIDTH, HEADS, FEEDFORWARD = 16, 4, 24
SIZES = {"width": WIDTH, "num_heads": HEADS, "feedforward": FEEDFORWARD, "dropout": 0.0}
NORM_ORDER = pytest.mark.parametrize("pre_norm", [False, True], ids=["post_norm", "pre_norm"])


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomise(module: nn.Module) -> nn.Module:
    """Every parameter away from its default, so that no bias or norm is the identity."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@NORM_ORDER
def test_encoder_layer_is_torchs_with_positions(pre_norm: bool) -> None:
    ours = randomise(EncoderLayer(**SIZES, pre_norm=pre_norm))
    torchs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=pre_norm
    )
    torchs.load_state_dict(ours.state_dict())  # strict: the names are torch's too
    x = random(2, 5, WIDTH)
    torch.testing.assert_close(ours(x, torch.zeros(1)), torchs(x), rtol=1e-4, atol=1e-5)


@NORM_ORDER
def test_decoder_layer_is_torchs_with_positions(pre_norm: bool) -> None:
    ours = randomise(DecoderLayer(**SIZES, pre_norm=pre_norm))
    torchs = nn.TransformerDecoderLayer(
        WIDTH, HEADS, FEEDFORWARD, dropout=0.0, batch_first=True, norm_first=pre_norm
    )
    torchs.load_state_dict(ours.state_dict())
    target, memory = random(2, 3, WIDTH), random(2, 5, WIDTH, seed=1)
    result = ours(target, torch.zeros(1), memory, memory)
    torch.testing.assert_close(result, torchs(target, memory), rtol=1e-4, atol=1e-5)


def test_positions_enter_queries_and_keys_but_not_values() -> None:
    """With one memory position attention is sure, and the result is its value, wherever that position is."""
    layer = randomise(EncoderLayer(**SIZES))
    one = random(2, 1, WIDTH)
    torch.testing.assert_close(layer(one, random(1, 1, WIDTH, seed=1)), layer(one, torch.zeros(1)))
    several = random(2, 5, WIDTH)
    moved = layer(several, random(1, 5, WIDTH, seed=1))
    assert (moved - layer(several, torch.zeros(1))).abs().max() > 1e-3


@NORM_ORDER
def test_only_a_pre_norm_encoder_ends_in_a_norm(pre_norm: bool) -> None:
    encoder = Encoder(**SIZES, num_layers=2, pre_norm=pre_norm)
    assert ("norm.weight" in encoder.state_dict()) == pre_norm
    if pre_norm:
        nn.init.constant_(encoder.norm.weight, 2.0)
        nn.init.constant_(encoder.norm.bias, 5.0)
        result = encoder(random(1, 4, WIDTH), torch.zeros(1))
        torch.testing.assert_close(result.mean(dim=-1), torch.full((1, 4), 5.0))


@NORM_ORDER
def test_decoder_returns_every_layer_normalised(pre_norm: bool) -> None:
    decoder = randomise(Decoder(**SIZES, num_layers=3, pre_norm=pre_norm))
    target, position = random(2, 3, WIDTH), random(1, 5, WIDTH, seed=2)
    memory = random(2, 5, WIDTH, seed=1)
    result = decoder(target, target, memory, position)
    assert result.shape == (3, 2, 3, WIDTH)
    x = target
    for layer, normalised in zip(decoder.layers, result, strict=True):
        x = layer(x, target, memory + position, memory)
        torch.testing.assert_close(normalised, decoder.norm(x))


def query_transformer(encoder_layers: int = 0, pre_norm: bool = False) -> QueryTransformer:
    sizes = {**SIZES, "encoder_layers": encoder_layers, "decoder_layers": 2, "pre_norm": pre_norm}
    return randomise(QueryTransformer(**sizes)).eval()


@NORM_ORDER
@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_queries_in_another_order_give_results_in_that_order(encoder_layers: int, pre_norm: bool) -> None:
    model = query_transformer(encoder_layers, pre_norm)
    features, position, queries = (
        random(2, WIDTH, 3, 4),
        random(1, WIDTH, 3, 4, seed=1),
        random(6, WIDTH, seed=2),
    )
    order = [3, 0, 5, 1, 4, 2]
    expected = model(features, position, queries)[:, :, order]
    torch.testing.assert_close(model(features, position, queries[order]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_memory_is_a_set_of_located_features(encoder_layers: int) -> None:
    """Moving features together with their positions changes nothing; without them it does."""
    model = query_transformer(encoder_layers)
    features, position, queries = (
        random(1, WIDTH, 3, 4),
        random(1, WIDTH, 3, 4, seed=1),
        random(6, WIDTH, seed=2),
    )
    expected = model(features, position, queries)
    moved = model(features.flip(3), position.flip(3), queries)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)
    assert (model(features.flip(3), position, queries) - expected).abs().max() > 1e-3


@NORM_ORDER
@pytest.mark.parametrize("encoder_layers", [0, 1])
def test_batched_is_single(encoder_layers: int, pre_norm: bool) -> None:
    model = query_transformer(encoder_layers, pre_norm)
    features, position, queries = (
        random(3, WIDTH, 3, 4),
        random(1, WIDTH, 3, 4, seed=1),
        random(6, WIDTH, seed=2),
    )
    batched = model(features, position, queries)
    assert batched.shape == (2, 3, 6, WIDTH)
    for i in range(3):
        single = model(features[i : i + 1], position, queries)[:, 0]
        torch.testing.assert_close(batched[:, i], single, rtol=1e-4, atol=1e-5)


def test_encoder_transformer_keeps_the_map() -> None:
    model = randomise(EncoderTransformer(**SIZES, num_layers=1)).eval()
    features, position = random(2, WIDTH, 3, 4), random(1, WIDTH, 3, 4, seed=1)
    result = model(features, position)
    sequence = model.encoder(features.flatten(2).transpose(1, 2), position.flatten(2).transpose(1, 2))
    assert result.shape == features.shape
    torch.testing.assert_close(result[1, :, 2, 3], sequence[1, 2 * 4 + 3])


def test_dropout_acts_in_training_only() -> None:
    layer = EncoderLayer(WIDTH, HEADS, FEEDFORWARD, dropout=0.5)
    x = random(1, 5, WIDTH)
    layer.eval()
    assert torch.equal(layer(x, torch.zeros(1)), layer(x, torch.zeros(1)))
    layer.train()
    assert not torch.equal(layer(x, torch.zeros(1)), layer(x, torch.zeros(1)))


def test_matrices_start_xavier_uniform() -> None:
    model = QueryTransformer(**SIZES, encoder_layers=1, decoder_layers=1)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            bound = math.sqrt(6 / sum(parameter.shape))
            assert 0.8 * bound < parameter.abs().max() <= bound, name


def slow_sine(y: int, x: int, channel: int, height: int, width: int, channels: int) -> float:
    """One number of the embedding, straight from its definition; y and x count from 0."""
    half = channels // 2
    place, size = (y + 1, height) if channel < half else (x + 1, width)
    i = channel % half
    angle = place / size * 2 * math.pi / 10000 ** (2 * (i // 2) / half)
    return math.cos(angle) if i % 2 else math.sin(angle)


@pytest.mark.parametrize(("height", "width", "channels"), [(1, 1, 4), (2, 3, 8), (5, 2, 16)])
def test_sine_position_is_its_definition(height: int, width: int, channels: int) -> None:
    expected = [
        [[slow_sine(y, x, c, height, width, channels) for x in range(width)] for y in range(height)]
        for c in range(channels)
    ]
    result = sine_position((height, width), channels)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, torch.tensor([expected]), rtol=0, atol=1e-5)


def test_first_half_of_the_sine_position_is_for_y() -> None:
    result = sine_position((4, 6), 16)[0]
    assert torch.equal(result[:8], result[:8, :, :1].expand(8, 4, 6))
    assert torch.equal(result[8:], result[8:, :1].expand(8, 4, 6))
    assert (
        len(torch.unique(result[:8, :, 0].T, dim=0)) == 4 and len(torch.unique(result[8:, 0].T, dim=0)) == 6
    )


def test_sine_position_needs_a_multiple_of_four() -> None:
    with pytest.raises(ValueError, match="divisible by 4, not 6"):
        sine_position((2, 2), 6)
