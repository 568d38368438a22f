"""The discriminator's layers by Triton's kernels, against PyTorch's operations."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

import curriculums
from config.stage import OptimizerOptions, Precision
from discriminators.discriminators import DISCRIMINATORS
from generators.cameras import Poses
from training import fused_layers
from training.adversarial import AdversarialGame, Fakes, Scenes
from training.penalty import observe

SIZE = 16


def critic(name):
    torch.manual_seed(0)
    network = DISCRIMINATORS[name](latent_dim=5, width=8)
    return network.to(memory_format=torch.channels_last)


def images(count, seed=1):
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, 3, SIZE, SIZE, generator=rng)
    return drawn.contiguous(memory_format=torch.channels_last)


def values(verdict):
    return torch.cat([head.flatten() for head in verdict if head is not None])


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_a_pass_and_its_gradients_are_those_of_the_reference(name, alpha):
    network, x = critic(name), images(3).requires_grad_()
    wanted = [x, *network.parameters()]
    found = []
    for kinds in (fused_layers.PLAIN, fused_layers.FUSED):
        heads = values(network(x, alpha, kinds.normal))
        upstream = torch.linspace(-1, 1, len(heads))
        parts = torch.autograd.grad((heads * upstream).sum(), wanted, allow_unused=True)
        found.append([heads.detach(), *(part for part in parts if part is not None)])
    assert len(found[0]) == len(found[1]) > 10
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["CelebA", "CelebA128"])
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("blocks", [1, 10**6])  # the images are not split, and each is alone
def test_an_update_with_and_without_penalties_is_that_of_the_reference(
    monkeypatch, name, step, blocks
):
    overrides = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4",
                 "discriminator_width=8", f"0.img_size={SIZE}", "0.batch_size=5",
                 "fade_steps=0", "r1_interval=2"]  # fmt: skip
    curriculum = curriculums.load(name, overrides=overrides)
    stage = replace(curriculum.at(0), step=step, r1_lambda=3.0, z_lambda=1.0)
    scenes = Scenes(torch.ones(4, 4), Poses(torch.zeros(4), torch.ones(4)))
    monkeypatch.setattr(fused_layers, "PROGRAMS", blocks)
    found = []
    for is_fused in (False, True):
        monkeypatch.setattr(fused_layers, "is_supported", lambda _, fused=is_fused: fused)
        torch.manual_seed(0)
        game = AdversarialGame(
            curriculum.build_generator(), curriculum.build_discriminator(),
            OptimizerOptions(), Precision(), seed=0,
        )  # fmt: skip
        game.scaler = torch.amp.GradScaler("cpu", enabled=False)
        fakes = Fakes(images(4, seed=2), torch.zeros(4, SIZE, SIZE), scenes)
        terms = game.discriminator_step(images(5), fakes, stage)
        gradients = [p.grad for p in game.discriminator.parameters() if p.grad is not None]
        found.append([*terms.values(), *gradients])
    assert len(found[0]) == len(found[1]) > 10
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=1e-3, atol=1e-6)


def test_observing_images_sums_no_gradients_of_constants(monkeypatch):
    summed, launch = [], fused_layers.launching.launch

    def watched(kernel, grid, *args, **constants):
        summed.append(constants.get("OF_CONSTANTS"))
        launch(kernel, grid, *args, **constants)

    monkeypatch.setattr(fused_layers.launching, "launch", watched)
    observe(critic("CCSDiscriminator"), images(2), 1.0, watched=fused_layers.FUSED.recorded())
    assert summed.count(None) == summed.count(False) > 3  # forward, and backward
