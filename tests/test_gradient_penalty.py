"""R1 computed with the frozen affine map, against automatic second derivatives."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import curriculums
from config.stage import OptimizerOptions, Precision
from discriminators.discriminators import DISCRIMINATORS
from discriminators.linearized import Affine
from generators.cameras import Poses
from training import losses
from training.adversarial import AdversarialGame, Fakes, Scenes
from training.losses import penalized_reals

STRENGTH = 0.7


def images(count, size=16, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=rng, dtype=torch.float64)


def critic(name, bias=0.0):
    """Return a narrow float64 discriminator; bias is added to its logits."""
    torch.manual_seed(0)
    network = DISCRIMINATORS[name](latent_dim=5, max_width=8).double()
    network.final_layer.bias.data[0] += bias
    return network


def of_autograd(network, real, alpha, strength=STRENGTH):
    """Return the loss on real images plus penalty, as in the paper."""
    real = real.clone().requires_grad_()
    logits = network(real, alpha).logits
    (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
    return F.softplus(-logits).mean(), strength * gradient.flatten(1).square().sum(1).mean()


def of_affine_map(network, real, alpha, strength=STRENGTH, others=None, **options):
    """Return a value with the loss's gradient, the logits of others, and the reals."""
    reals = penalized_reals(network, real, alpha, strength=strength, **options)
    others = real[:0] if others is None else others
    shares = torch.cat([reals.shares, real.new_ones(len(others))])
    stand_in = torch.cat([reals.images.to(real.dtype), others])
    logits = network(stand_in, alpha, Affine(reals.watched, shares)).logits
    return (reals.factors * logits[: len(real)]).sum(), logits[len(real) :], reals


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [g for g in found if g is not None]


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_parameters_get_the_gradient_of_automatic_differentiation(name, alpha):
    network, real, fake = critic(name), images(3), images(2, seed=2)
    logistic, penalty = of_autograd(network, real, alpha)
    expected = gradients(logistic + penalty + network(fake, alpha).logits.square().sum(), network)
    loss, of_fakes, reals = of_affine_map(network, real, alpha, others=fake)
    found = gradients(loss + of_fakes.square().sum(), network)
    torch.testing.assert_close(of_fakes, network(fake, alpha).logits)
    torch.testing.assert_close((reals.logistic, reals.penalty), (logistic, penalty))
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [-300.0, 30.0, 2000.0])
def test_a_confident_discriminator_leaves_the_penalty_alone(bias):
    """At 2000 the slope of softplus is zero, and nothing may be divided by it."""
    network, real = critic("CCSDiscriminator", bias), images(2, size=4)
    expected = gradients(sum(of_autograd(network, real, 1.0)), network)
    found = gradients(of_affine_map(network, real, 1.0)[0], network)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_a_constant_discriminator_has_no_penalty_and_a_finite_gradient():
    network, real = critic("CCSDiscriminator", 2000.0), images(2, size=4)
    network.final_layer.weight.data.zero_()
    loss, _, reals = of_affine_map(network, real, 1.0)
    assert reals.penalty == 0
    assert all((gradient == 0).all() for gradient in gradients(loss, network))


def test_the_penalty_of_a_linear_critic_is_its_squared_weight_norm():
    network = critic("CCSDiscriminator")
    level = len(network.layers)  # images of 2 x 2 pixels: a 1 x 1 and a 2 x 2 convolution
    network.fromRGB[level].model[0].bias.data.fill_(100.0)  # all inputs of rectifiers are positive
    first = network.fromRGB[level].model[0].weight[:, :, 0, 0]  # (C, 3)
    whole = torch.einsum("chw,ci->ihw", network.final_layer.weight[0], first)
    penalty = penalized_reals(network, images(5, size=2), 1.0, strength=1.0).penalty
    torch.testing.assert_close(penalty, whole.detach().square().sum())


def test_the_scale_of_the_loss_does_not_matter():
    network, real = critic("CCSDiscriminator"), images(2, size=8)
    plain = of_affine_map(network, real, 1.0)
    scaled = of_affine_map(network, real, 1.0, scale=real.new_tensor(1024.0))
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[2].penalty, plain[2].penalty)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [0.0, 25.0])
def test_half_precision_has_the_direction_of_float64(bias, dtype):
    """A slope of exp(-25) is below the smallest float16."""
    network, real = critic("CCSDiscriminator", bias), images(4, size=8)
    expected = torch.cat(
        [g.flatten() for g in gradients(sum(of_autograd(network, real, 1)), network)]
    )
    network.float()
    with torch.autocast("cpu", dtype=dtype):
        loss, _, _ = of_affine_map(network, real.float(), 1.0)
    found = torch.cat([g.flatten() for g in gradients(loss, network)]).double()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.995
    assert found.norm() / expected.norm() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("name", ["CelebA", "Demo"])
@pytest.mark.parametrize("step", [0, 1])
def test_the_game_gives_the_discriminator_the_gradient_of_its_terms(name, step):
    """Steps with and without R1, against separate passes and automatic differentiation."""
    overrides = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4",
                 "0.num_steps=3", "discriminator_width=8", "0.img_size=8", "0.batch_size=4",
                 "0.batch_split=1", "grad_clip=1e9", "fade_steps=0", "r1_interval=2"]  # fmt: skip
    curriculum = curriculums.load(name, overrides=overrides)
    torch.manual_seed(0)
    game = AdversarialGame(
        curriculum.build_generator().double(), curriculum.build_discriminator().double(),
        OptimizerOptions(), Precision(), seed=0,
    )  # fmt: skip
    stage = replace(curriculum.at(step), r1_lambda=0.8)
    poses = Poses(*torch.linspace(0, 2, 6, dtype=torch.float64).view(2, 3))
    scenes = Scenes(torch.ones(3, 4, dtype=torch.float64), poses)
    fakes = Fakes(images(3, size=8, seed=2), torch.zeros(3, 8, 8), scenes)
    real = images(4, size=8)
    network = game.discriminator
    logistic, penalty = of_autograd(network, real, 1.0, strength=0.8)
    on_fake = network(fakes.images, 1.0)
    expected = {"d_real": logistic, "d_fake": F.softplus(on_fake.logits).mean()}
    expected["d_identity"] = losses.identity(
        on_fake, *scenes, z_lambda=stage.z_lambda, pos_lambda=stage.pos_lambda
    )
    if step == 0:
        expected["d_r1"] = penalty
    gradient = gradients(sum(expected.values()), network)
    terms = game.discriminator_step(real, fakes, stage)
    assert set(terms) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value.detach())
    found = [p.grad for p in network.parameters() if p.grad is not None]
    for one, other in zip(found, gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)
