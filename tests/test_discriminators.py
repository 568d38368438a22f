"""Discriminators: state-dict contract, levels, fade-in and heads."""

import math
import os
import subprocess
import sys

import pytest
import torch
from documented import ROOT

from discriminators.convolutions import CoordConv
from discriminators.discriminators import DISCRIMINATORS

PROGRESSIVE = [16, 32, 64, 128, 256, 400, 400, 400, 400]
STRIDED = [32, 64, 128, 256, 400, 400, 400, 400]


def is_progressive(name):
    return name.startswith("Progressive")


def expected_names(name):
    widths = PROGRESSIVE if is_progressive(name) else STRIDED
    conv = "" if name == "StridedDiscriminator" else ".conv"
    modules = []
    for i, (before, after) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        modules += [f"layers.{i}.network.0{conv}", f"layers.{i}.network.2{conv}"]
        if not is_progressive(name) or before != after:
            modules.append(f"layers.{i}.proj")
    modules += [f"fromRGB.{i}.model.0" for i in range(len(widths))] + ["final_layer"]
    if name in ("StridedDiscriminator", "CCSDiscriminator"):
        modules.append("pose_layer")
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")]


@pytest.mark.parametrize(
    "name",
    ["ProgressiveDiscriminator", "ProgressiveEncoderDiscriminator", "StridedDiscriminator",
     "CCSDiscriminator", "CCSEncoderDiscriminator"],
)  # fmt: skip
def test_state_dict_names_order_and_shapes(name):
    network = DISCRIMINATORS[name]()
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert list(shapes) == expected_names(name)
    assert [key for key, _ in network.named_parameters()] == expected_names(name)
    first, second = (16, 32) if is_progressive(name) else (32, 64)
    extra, conv = (0, "") if name == "StridedDiscriminator" else (2, ".conv")
    assert shapes[f"layers.0.network.0{conv}.weight"] == (second, first + extra, 3, 3)
    assert shapes[f"layers.0.network.2{conv}.weight"] == (second, second + extra, 3, 3)
    assert shapes["layers.0.proj.weight"] == (second, first, 1, 1)
    assert shapes["fromRGB.0.model.0.weight"] == (first, 3, 1, 1)
    assert shapes["final_layer.weight"] == (259 if "Encoder" in name else 1, 400, 2, 2)
    if name in ("StridedDiscriminator", "CCSDiscriminator"):  # linear, 2 in and 400 out
        assert (shapes["pose_layer.weight"], shapes["pose_layer.bias"]) == ((400, 2), (400,))


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("size", [2, 4, 32])
def test_verdicts_at_every_kind_of_level(name, size):
    torch.manual_seed(0)
    network = DISCRIMINATORS[name](latent_dim=5, width=8)
    verdict = network(torch.randn(3, 3, size, size), 0.5)
    assert verdict.logits.shape == (3,)
    if "Encoder" in name:
        assert verdict.latent.shape == (3, 5)
        assert verdict.pose.shape == (3, 2)
    else:
        assert verdict.latent is None
        assert verdict.pose is None


def test_largest_sizes_and_a_size_without_a_level():
    progressive = DISCRIMINATORS["ProgressiveDiscriminator"](width=4)
    strided = DISCRIMINATORS["StridedDiscriminator"](width=4)
    assert progressive.image_sizes() == (2, 4, 8, 16, 32, 64, 128, 256, 512)
    assert strided.image_sizes()[-1] == 256
    assert progressive(torch.zeros(1, 3, 512, 512), 1.0).logits.shape == (1,)
    with pytest.raises(ValueError, match="no level for images of 48 px"):
        progressive(torch.zeros(1, 3, 48, 48), 1.0)


def test_coordinates_are_row_then_column_after_the_features():
    layer = CoordConv(1, 2, 1)
    with torch.no_grad():
        layer.conv.bias.zero_()
        layer.conv.weight.zero_()
        layer.conv.weight[0, 1] = 1  # passes on what follows the feature
        layer.conv.weight[1, 2] = 1
    rows, columns = layer(torch.randn(1, 1, 3, 5))[0]
    torch.testing.assert_close(rows, torch.tensor([-1.0, 0, 1])[:, None].expand(3, 5))
    torch.testing.assert_close(columns, torch.linspace(-1, 1, 5).expand(3, 5))


@pytest.mark.parametrize("name", ["ProgressiveDiscriminator", "CCSDiscriminator"])
def test_without_alpha_only_the_half_size_image_counts(name):
    torch.manual_seed(0)
    network = DISCRIMINATORS[name](width=8)
    images = torch.randn(2, 3, 16, 16)
    same_half = images.clone()
    same_half[:, :, 1::2] += 1  # nearest-neighbour halving keeps the even rows
    faded = network(images, 0.0).logits
    torch.testing.assert_close(faded, network(same_half, 0.0).logits)
    assert (network(images, 0.5).logits - network(same_half, 0.5).logits).abs().max() > 1e-4
    halved = network(images[:, :, ::2, ::2], 1.0).logits
    torch.testing.assert_close(faded, halved)


def test_fade_in_is_linear_before_the_second_block():
    torch.manual_seed(0)
    network = DISCRIMINATORS["ProgressiveDiscriminator"](width=8)
    seen = []
    network.layers[6].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    images = torch.randn(1, 3, 16, 16)
    for alpha in (0.0, 0.25, 1.0):
        network(images, alpha)
    torch.testing.assert_close(seen[1], torch.lerp(seen[0], seen[2], 0.25))


def test_initial_weights_are_kaiming_only_in_the_strided_family():
    torch.manual_seed(0)
    strided = DISCRIMINATORS["CCSDiscriminator"]()
    weight = strided.layers[3].network[0].conv.weight
    expected = math.sqrt(2 / (1 + 0.2**2) / (weight[0].numel()))
    assert weight.std().item() == pytest.approx(expected, rel=0.02)
    progressive = DISCRIMINATORS["ProgressiveDiscriminator"]()
    weight = progressive.layers[4].network[0].conv.weight
    assert weight.abs().max() <= 1 / math.sqrt(weight[0].numel()) + 1e-6  # PyTorch's own bound


ONE_STEP_EACH = """
import sys, torch
from discriminators.discriminators import DISCRIMINATORS
torch.manual_seed(0)
for name, width in ((name, width) for name in DISCRIMINATORS for width in (1, 4)):
    print(name, width, file=sys.stderr)
    network = DISCRIMINATORS[name](latent_dim=5, width=width)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for size in 8, 32:
        images = torch.randn(4, 3, size, size).contiguous(memory_format=torch.channels_last)
        images.requires_grad_()
        logits = network(images, 0.5).logits
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        (logits.mean() + gradient.square().sum()).backward()
        optimizer.step()
"""


def test_the_narrowest_discriminators_train_by_avx2_instructions():
    # oneDNN's AVX2 kernel of a strided 1x1 convolution's gradient writes beyond its buffer under
    # 8 channels. That would crash this process, so another one runs it.
    avx2 = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    command = [sys.executable, "-c", ONE_STEP_EACH]
    run = subprocess.run(command, cwd=ROOT, env=avx2, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
