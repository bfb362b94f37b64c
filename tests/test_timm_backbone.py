"""The timm backbone: features are timm's own, weights fit exactly, frozen norms keep their activation."""

import logging

import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mask_former.config import add_mask_former_config
from mask_former.errors import InputError
from mask_former.timm_backbone import FrozenBatchNormAct2d, TimmBackbone, freeze_batch_norm


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def full_model(name: str, **options) -> nn.Module:
    """A timm classifier with batch-norm statistics that are not the identity."""
    model = timm.create_model(name, **options).eval()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model


def assert_close(feature: torch.Tensor, reference: torch.Tensor) -> None:
    """Equal to 1e-5 of the reference's largest value: single values near 0 are sums that cancel."""
    scale = float(reference.detach().abs().max())
    assert scale > 1e-3  # dead features would all agree
    torch.testing.assert_close(feature, reference, rtol=0, atol=1e-5 * scale)


def saved(model: nn.Module, path) -> str:
    torch.save(model.state_dict(), path)
    return str(path)


# Norms with activation and TensorFlow padding; plain; flattened names, channels last, a size check to lift.
@pytest.mark.parametrize(
    ("name", "options", "channels"),
    [
        ("tf_efficientnet_lite0", {}, [24, 40, 112, 320]),
        ("resnet18", {}, [64, 128, 256, 512]),
        ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, [96, 192, 384, 768]),
    ],
)
def test_features_equal_those_of_timms_full_model(name, options, channels, tmp_path):
    full = full_model(name, **options)
    backbone = TimmBackbone(name=name, weights=saved(full, tmp_path / "full.pth")).eval()
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected = full.forward_intermediates(images, intermediates_only=True, output_fmt="NCHW")[-4:]
        features = backbone(images)
    shapes = backbone.output_shape()
    assert list(features) == list(shapes) == ["res2", "res3", "res4", "res5"]
    assert [shapes[key].channels for key in shapes] == channels
    assert [shapes[key].stride for key in shapes] == [4, 8, 16, 32]
    assert backbone.size_divisibility == 32
    for (key, feature), reference in zip(features.items(), expected, strict=True):
        assert feature.shape[1:] == (shapes[key].channels, 64 // shapes[key].stride, 96 // shapes[key].stride)
        assert_close(feature, reference)


def test_configuration_builds_it_and_gradients_reach_every_parameter():
    cfg = get_cfg()
    add_mask_former_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "tf_efficientnet_lite0"
    backbone = build_backbone(cfg)
    sum(feature.square().mean() for feature in backbone(torch.randn(1, 3, 64, 64)).values()).backward()
    without = [name for name, parameter in backbone.named_parameters() if parameter.grad is None]
    assert without == []
    assert not any(".bn" in name for name, _ in backbone.named_parameters())  # frozen unless told otherwise


def test_fewer_features_leave_later_stages_out():
    backbone = TimmBackbone(name="resnet18", out_features=["res4", "res3"])
    assert {key: shape.stride for key, shape in backbone.output_shape().items()} == {"res3": 8, "res4": 16}
    assert backbone.size_divisibility == 16
    assert not any("layer4" in name for name, _ in backbone.named_parameters())


def test_an_index_is_not_a_place_where_timm_omits_the_first_feature():
    backbone = TimmBackbone(name="dla34")  # its default outputs are 1..5 of 0..5
    assert [feature.shape[-1] for feature in backbone(torch.zeros(1, 3, 64, 64)).values()] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_frozen_norms_in_training_act_as_timms_in_evaluation(name, tmp_path):
    weights = saved(full_model(name), tmp_path / "full.pth")
    frozen = TimmBackbone(name=name, weights=weights).train()
    free = TimmBackbone(name=name, weights=weights, freeze_bn=False).eval()
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    images = torch.randn(2, 3, 64, 64)
    batched, expected, alone = frozen(images), free(images), frozen(images[:1])
    for key, feature in batched.items():
        assert_close(feature, expected[key])
        assert_close(feature[:1], alone[key])
    for key, value in frozen.state_dict().items():
        assert torch.equal(value, before[key]), key
    counters = {key for key in free.state_dict() if key.endswith("num_batches_tracked")}
    assert free.state_dict().keys() - counters == frozen.state_dict().keys()
    assert any(isinstance(module, _BatchNorm) for module in free.modules())


def test_frozen_norm_by_hand_keeps_activation_and_half_precision():
    norm = timm.layers.BatchNormAct2d(1, eps=0.0, act_layer=nn.ReLU6)
    norm.running_mean.fill_(1.0)
    norm.running_var.fill_(4.0)
    nn.init.constant_(norm.weight, 2.0)
    nn.init.constant_(norm.bias, 0.5)
    holder = nn.Sequential(norm)
    freeze_batch_norm(holder)
    assert isinstance(holder[0], FrozenBatchNormAct2d)
    x = torch.tensor([-3.0, 1.0, 3.0, 20.0]).reshape(1, 1, 1, 4).requires_grad_()
    # 2 (x - 1) / 2 + 0.5 = x - 0.5, clipped to 0..6
    assert holder(x).flatten().tolist() == [0.0, 0.5, 2.5, 6.0]
    assert holder(x.bfloat16()).dtype is torch.bfloat16


def test_a_norm_without_running_statistics_is_not_left_unfrozen_silently():
    with pytest.raises(InputError, match="cannot freeze BatchNorm1d, BatchNorm2d layers.*FREEZE_BN False"):
        freeze_batch_norm(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False), nn.BatchNorm1d(2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnt50", r"'resnt50' is not a model of timm .*did you mean resnet50 "),
        ("hf-hub:timm/resnet50", "is not a model of timm"),  # would be a download
        ("", "'' is not a model of timm"),
        ("resnet50.no_such_tag", "cannot be made a backbone by timm: Invalid pretrained tag"),
        ("vit_tiny_patch16_224", r"has features at strides \[16, 16, 16\], needed are \[4, 8, 16, 32\]"),
        ("efficientformerv2_s0", "cannot take images of any size"),
        ("inception_v4", r"loses borders: res2 of a \(96, 160\) image is"),
    ],
)
def test_models_that_cannot_be_a_backbone_are_named_in_one_line(name, message):
    with pytest.raises(InputError, match=message) as caught:
        TimmBackbone(name=name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("features", [[], ["res1"], ["res2", "p3"]])
def test_unknown_features_are_refused(features):
    with pytest.raises(InputError, match="MODEL.TIMM.OUT_FEATURES .* must be among"):
        TimmBackbone(name="resnet18", out_features=features)


def test_weights_must_fit_exactly_but_the_classifier_is_left_out(tmp_path, caplog):
    path = tmp_path / "w.pth"
    full = timm.create_model("resnet18").state_dict()
    with caplog.at_level(logging.INFO, logger="mask_former.timm_backbone"):
        torch.save({"state_dict": full}, path)
        TimmBackbone(name="resnet18", weights=str(path))
    assert "120 entries from" in caplog.text  # 20 convolutions and 20 norms of 5 entries
    assert "; 2 of later layers left out" in caplog.text

    bad = dict(full, stray=torch.zeros(1))
    del bad["layer1.0.conv1.weight"]
    bad["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(bad, path)
    expected = "1 missing: layer1.0.conv1.weight; 1 unexpected: stray; 1 of another shape: conv1.weight"
    with pytest.raises(InputError, match=expected):
        TimmBackbone(name="resnet18", weights=str(path))


def test_weights_from_safetensors_and_without_counters(tmp_path):
    from safetensors.torch import save_file

    full = {k: v for k, v in full_model("resnet18").state_dict().items() if "num_batches" not in k}
    save_file(full, tmp_path / "w.safetensors")
    loaded = TimmBackbone(name="resnet18", weights=str(tmp_path / "w.safetensors")).state_dict()
    assert torch.equal(loaded["body.layer4.1.bn2.running_var"], full["layer4.1.bn2.running_var"])


def test_missing_weights_file_is_named(tmp_path):
    path = str(tmp_path / "absent.pth")
    with pytest.raises(
        InputError, match="no weights file at .*absent.pth: put timm's state dict of resnet18"
    ):
        TimmBackbone(name="resnet18", weights=path)
    with pytest.raises(InputError) as caught:
        TimmBackbone(name="tf_efficientnet_lite0", weights=path)
    command = f"python tools/convert_efficientnet_lite.py --variant lite0 --output {path}`"
    assert command in str(caught.value) and "MODEL.TIMM.WEIGHTS ''" in str(caught.value)
