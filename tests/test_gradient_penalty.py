"""R1 and R2 computed with the frozen affine map, against automatic second derivatives."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import curriculums
from config.stage import OptimizerOptions, Precision
from discriminators.discriminators import DISCRIMINATORS, CCSDiscriminator
from discriminators.linearized import NORMAL_LAYERS, Affine
from generators.cameras import Poses
from system.errors import UsageError
from training import losses
from training.adversarial import AdversarialGame, Fakes, Scenes
from training.losses import LOSSES
from training.penalty import observe, require_affine, stand_ins

STRENGTH = 0.7


def images(count, size=16, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, generator=rng, dtype=torch.float64)


def critic(name, bias=0.0):
    """Return a narrow float64 discriminator; bias is added to its logits."""
    torch.manual_seed(0)
    network = DISCRIMINATORS[name](latent_dim=5, width=8).double()
    network.final_layer.bias.data[0] += bias
    return network


def of_autograd(network, images, alpha, strength=STRENGTH):
    """Return the logits of images and their penalty, as in the paper."""
    images = images.clone().requires_grad_()
    logits = network(images, alpha).logits
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return logits, strength * gradient.flatten(1).square().sum(1).mean()


def logistic_of_autograd(network, real, alpha=1.0):
    logits, penalty = of_autograd(network, real, alpha)
    return F.softplus(-logits).mean() + penalty


def of_affine_map(network, real, alpha=1.0, others=None, **options):
    """Return a value with the logistic loss's gradient, the logits of others, and the pass."""
    seen = observe(network, real, alpha, **options)
    pulls = torch.full_like(seen.logits, 2 * STRENGTH / len(real))
    slopes = LOSSES["logistic"].slopes(seen.logits, seen.logits)[: len(seen.logits)]
    ins = stand_ins(seen, slopes, pulls)
    others = real[:0] if others is None else others
    layers = Affine(seen.watched, torch.cat([ins.shares, ins.shares.new_ones(len(others))]))
    logits = network(torch.cat([ins.images.to(real.dtype), others]), alpha, layers).logits
    return (ins.factors * logits[: len(real)]).sum(), logits[len(real) :], seen


def gradients(loss, network):
    found = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return [g for g in found if g is not None]


def assert_equal_lists(found, expected, rtol=1e-9, atol=1e-12):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("alpha", [1.0, 0.3])
@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_parameters_get_the_gradient_of_automatic_differentiation(name, alpha):
    network, real, fake = critic(name), images(3), images(2, seed=2)
    logits, penalty = of_autograd(network, real, alpha)
    squares = network(fake, alpha).logits.square().sum()
    expected = gradients(F.softplus(-logits).mean() + penalty + squares, network)
    loss, of_fakes, seen = of_affine_map(network, real, alpha, others=fake)
    found = gradients(loss + of_fakes.square().sum(), network)
    torch.testing.assert_close(of_fakes, network(fake, alpha).logits)
    torch.testing.assert_close(seen.logits, logits.detach())
    torch.testing.assert_close(STRENGTH * seen.squares().mean(), penalty.detach())
    assert_equal_lists(found, expected)


@pytest.mark.parametrize("bias", [-300.0, 30.0, 2000.0])
def test_a_confident_discriminator_leaves_the_penalty_alone(bias):
    """At 2000 the slope of softplus is zero, and nothing may be divided by it."""
    network, real = critic("CCSDiscriminator", bias), images(2, size=4)
    expected = gradients(logistic_of_autograd(network, real), network)
    assert_equal_lists(gradients(of_affine_map(network, real)[0], network), expected)


def test_a_constant_discriminator_has_no_penalty_and_a_finite_gradient():
    network, real = critic("CCSDiscriminator", 2000.0), images(2, size=4)
    network.final_layer.weight.data.zero_()
    loss, _, seen = of_affine_map(network, real)
    assert (seen.squares() == 0).all()
    assert all((gradient == 0).all() for gradient in gradients(loss, network))


def test_the_penalty_of_a_linear_critic_is_its_squared_weight_norm():
    network = critic("CCSDiscriminator")
    level = len(network.layers)  # images of 2 x 2 pixels: a 1 x 1 and a 2 x 2 convolution
    network.fromRGB[level].model[0].bias.data.fill_(100.0)  # all inputs of rectifiers are positive
    first = network.fromRGB[level].model[0].weight[:, :, 0, 0]  # (C, 3)
    whole = torch.einsum("chw,ci->ihw", network.final_layer.weight[0], first)
    squares = observe(network, images(5, size=2), 1.0).squares()
    torch.testing.assert_close(squares, whole.detach().square().sum().expand(5))


def test_the_scale_of_the_loss_does_not_matter():
    network, real = critic("CCSDiscriminator"), images(2, size=8)
    plain = of_affine_map(network, real)
    scaled = of_affine_map(network, real, scale=real.new_tensor(1024.0))
    torch.testing.assert_close(scaled[0], plain[0])
    torch.testing.assert_close(scaled[2].squares(), plain[2].squares())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [0.0, 25.0])
def test_half_precision_has_the_direction_of_float64(bias, dtype):
    """A slope of exp(-25) is below the smallest float16."""
    network, real = critic("CCSDiscriminator", bias), images(4, size=8)
    exact = gradients(logistic_of_autograd(network, real), network)
    expected = torch.cat([g.flatten() for g in exact])
    network.float()
    with torch.autocast("cpu", dtype=dtype):
        loss, _, _ = of_affine_map(network, real.float())
    found = torch.cat([g.flatten() for g in gradients(loss, network)]).double()
    assert torch.cosine_similarity(found, expected, dim=0) > 0.995
    assert found.norm() / expected.norm() == pytest.approx(1, abs=0.02)


class Mixing(CCSDiscriminator):
    """Its last layer sees the mean of the batch."""

    def outputs(self, images, alpha, layers=NORMAL_LAYERS):
        outputs = super().outputs(images, alpha, layers)
        return outputs + 0.1 * outputs.mean(0)


class Smooth(CCSDiscriminator):
    """It is not affine anywhere."""

    def outputs(self, images, alpha, layers=NORMAL_LAYERS):
        return torch.tanh(super().outputs(images, alpha, layers))


class Unseen(CCSDiscriminator):
    """A rectifier of its own, of whose slope `layers` knows nothing."""

    def outputs(self, images, alpha, layers=NORMAL_LAYERS):
        return F.leaky_relu(super().outputs(images, alpha, layers), 0.2)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_the_included_discriminators_pass_the_check_of_the_start(name):
    require_affine(DISCRIMINATORS[name](width=8, latent_dim=4))


@pytest.mark.parametrize("kind", [Mixing, Smooth, Unseen])
def test_a_discriminator_whose_penalties_would_be_wrong_is_refused(kind):
    torch.manual_seed(3)
    with pytest.raises(UsageError, match=f"discriminator {kind.__name__}: its gradient penalties"):
        require_affine(kind(width=8, latent_dim=4))


def small_game(name):
    """Return a float64 game with narrow networks and its stage at step 0, without fading."""
    overrides = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4",
                 "0.num_steps=3", "discriminator_width=8", "0.img_size=8", "0.batch_size=4",
                 "0.batch_split=1", "grad_clip=1e9", "fade_steps=0", "r1_interval=2"]  # fmt: skip
    curriculum = curriculums.load(name, overrides=overrides)
    torch.manual_seed(0)
    game = AdversarialGame(
        curriculum.build_generator().double(), curriculum.build_discriminator().double(),
        OptimizerOptions(), Precision(), seed=0,
    )  # fmt: skip
    return game, curriculum.at(0)


def scenes_of(count):
    poses = Poses(*torch.linspace(0, 2, 2 * count, dtype=torch.float64).view(2, count))
    return Scenes(images(count)[:, 0, 0, :4], poses)


@pytest.mark.parametrize("name", ["CelebA", "Demo"])  # with heads that guess the scene and without
@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize(
    ("gan_loss", "r2_lambda", "num_fakes"),
    [("logistic", 0, 3), ("logistic", 0.3, 4), ("relativistic", 0, 4), ("relativistic", 0.3, 4)],
)
def test_the_game_gives_the_discriminator_the_gradient_of_its_terms(
    name, step, gan_loss, r2_lambda, num_fakes
):
    """Steps with and without penalties, against separate passes and automatic differentiation."""
    game, stage = small_game(name)
    stage = replace(stage, step=step, gan_loss=gan_loss, r1_lambda=0.8, r2_lambda=r2_lambda)
    scenes = scenes_of(num_fakes)
    fakes = Fakes(images(num_fakes, size=8, seed=2), torch.zeros(num_fakes, 8, 8), scenes)
    real, network = images(4, size=8), game.discriminator
    on_real, r1 = of_autograd(network, real, 1.0, strength=0.8)
    on_fake, r2 = of_autograd(network, fakes.images, 1.0, strength=r2_lambda)
    if gan_loss == "relativistic":
        expected = {"d_pair": F.softplus(on_fake - on_real).mean()}
    else:
        expected = {"d_real": F.softplus(-on_real).mean(), "d_fake": F.softplus(on_fake).mean()}
    expected["d_identity"] = losses.identity(
        network(fakes.images, 1.0), *scenes, z_lambda=stage.z_lambda, pos_lambda=stage.pos_lambda
    )
    if step == 0:
        expected |= {"d_r1": r1} if num_fakes == 3 else {"d_r1": r1, "d_r2": r2}
    gradient = gradients(sum(expected.values()), network)
    terms = game.discriminator_step(real, fakes, stage)
    assert set(terms) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value.detach())
    found = [p.grad for p in network.parameters() if p.grad is not None]
    assert_equal_lists(found, gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("batch_split", [1, 2, 3])  # 3 makes parts of 2, 2 and 1
def test_the_generator_pairs_each_fake_with_the_real_of_its_place(batch_split):
    """Splits must not change the pairs: the gradient is that of all pairs at once."""
    game, stage = small_game("CelebA")
    stage = replace(stage, batch_split=batch_split, gan_loss="relativistic", pos_lambda=2.0)
    stage = replace(stage, render=replace(stage.render, density_noise=0.0))
    scenes, real = scenes_of(5), 3 * images(5, size=8)
    game.generate = lambda part, stage, rng: AdversarialGame.generate(game, part, stage, rng=None)
    game.generator.siren.final_layer.weight.data.mul_(300.0)  # fakes that differ
    verdict = game.discriminator(game.generate(scenes, stage, rng=None).images, 1.0)
    assert verdict.logits.std() > 1e-3
    pair = F.softplus(game.discriminator(real, 1.0).logits.detach() - verdict.logits).mean()
    identity = losses.identity(verdict, *scenes, z_lambda=stage.z_lambda, pos_lambda=2.0)
    expected = gradients(pair + identity, game.generator)
    terms = game.generator_step(real, scenes, stage, rng=torch.Generator())
    torch.testing.assert_close(terms["g_pair"], pair.detach())
    found = [p.grad for p in game.generator.parameters() if p.grad is not None]
    assert_equal_lists(found, expected, rtol=1e-8, atol=1e-11)
