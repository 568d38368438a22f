"""Loss terms against closed forms."""

import math
from typing import get_args

import pytest
import scipy.sparse.csgraph
import torch

from config.stage import GanLoss
from discriminators.discriminators import Verdict
from generators.cameras import Poses
from training.losses import (
    LOSSES,
    half_transparency,
    identity,
    islands,
    logistic,
    on_islands,
    relativistic,
    top_k,
)


def test_logistic_of_an_undecided_critic_is_log_two():
    assert logistic(torch.zeros(5), is_real=True).item() == pytest.approx(math.log(2))
    assert logistic(torch.zeros(5), is_real=False).item() == pytest.approx(math.log(2))


def test_logistic_is_minus_the_log_of_the_probability():
    logits = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    real = -torch.log(torch.sigmoid(logits)).mean()
    fake = -torch.log(1 - torch.sigmoid(logits)).mean()
    torch.testing.assert_close(logistic(logits, is_real=True), real)
    torch.testing.assert_close(logistic(logits, is_real=False), fake)


def test_the_relativistic_loss_depends_on_the_difference_of_a_pair_alone():
    logits = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)
    others = torch.tensor([1.0, 0.5, -4.0], dtype=torch.float64)
    expected = -torch.log(torch.sigmoid(logits - others)).mean()
    torch.testing.assert_close(relativistic(logits, others), expected)
    torch.testing.assert_close(relativistic(logits + 7, others + 7), expected)
    assert relativistic(others, others).item() == pytest.approx(math.log(2))


LOGITS = torch.tensor([-2.0, 9.0]), torch.tensor([0.5, 3.0])  # of reals and of fakes
EXPECTED_SLOPES = {
    "logistic": [-1 / (1 + math.exp(-2)), -1 / (1 + math.exp(9)),
                 1 / (1 + math.exp(-0.5)), 1 / (1 + math.exp(-3))],
    "relativistic": [-1 / (1 + math.exp(-2.5)), -1 / (1 + math.exp(6)),
                     1 / (1 + math.exp(-2.5)), 1 / (1 + math.exp(6))],
}  # fmt: skip


def test_every_loss_that_a_curriculum_can_name_exists():
    assert set(LOSSES) == set(get_args(GanLoss))


@pytest.mark.parametrize("kind", EXPECTED_SLOPES)
def test_slopes_are_the_derivatives_of_the_discriminators_terms(kind):
    expected = torch.tensor(EXPECTED_SLOPES[kind]) / len(LOGITS[0])  # both terms are means
    with torch.no_grad():
        torch.testing.assert_close(LOSSES[kind].slopes(*LOGITS), expected)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_says_what_a_guessing_discriminator_has(kind):
    terms = LOSSES[kind].of_discriminator(torch.zeros(3), torch.zeros(3))
    chance = LOSSES[kind].chance or {name: float(term) for name, term in terms.items()}
    assert {name: float(term) for name, term in terms.items()} == pytest.approx(chance)


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_says_whether_reals_and_fakes_have_a_part_in_each_others_terms(kind):
    on_real, on_fake = LOGITS
    here, there = (LOSSES[kind].slopes(on_real, others)[:2] for others in (on_fake, -on_fake))
    assert torch.equal(here, there) != LOSSES[kind].compares_pairs


@pytest.mark.parametrize(
    ("count", "share", "kept"), [(5, 0.6, 3), (5, 0.61, 4), (28, 1.0, 28), (28, 0.6, 17), (3, 0, 1)]
)
def test_top_k_keeps_the_best(count, share, kept):
    logits = torch.arange(count, dtype=torch.float32)
    best = top_k(logits.flip(0), share)
    assert sorted(best.tolist()) == logits[-kept:].tolist()


def test_identity_is_a_weighted_mean_over_all_numbers():
    verdict = Verdict(
        torch.zeros(2),
        latent=torch.tensor([[1.0, 0], [0, 0]]),
        pose=torch.tensor([[1.0, 2], [3, 4]]),
    )
    poses = Poses(pitch=torch.tensor([1.0, 3]), yaw=torch.tensor([0.0, 4]))
    loss = identity(verdict, torch.zeros(2, 2), poses, z_lambda=8.0, pos_lambda=15.0)
    assert loss.item() == pytest.approx(8 * 1 / 4 + 15 * 4 / 4)


def test_half_transparency_is_zero_for_surfaces_and_one_for_half_a_fog():
    assert half_transparency(torch.tensor([0.0, 1.0, 1.0])).item() == 0
    assert half_transparency(torch.full((2, 4, 4), 0.5)).item() == 1


def test_half_transparency_clears_and_never_hardens():
    opacities = torch.tensor([0.1, 0.4, 0.6, 0.9], requires_grad=True)
    half_transparency(opacities).backward()
    torch.testing.assert_close(opacities.grad, torch.tensor([0.8, 0.2, 0.0, 0.0]))


def opacities_with(*boxes, size=32):
    opacities = torch.zeros(1, size, size)
    for top, bottom, left, right, value in boxes:
        opacities[0, top:bottom, left:right] = value
    return opacities


OBJECT = (8, 20, 5, 25, 0.9)


def test_only_opaque_parts_apart_from_the_object_are_islands():
    thin, beyond_a_gap = (20, 26, 6, 7, 0.8), (21, 22, 10, 12, 0.7)
    fog, island = (0, 3, 0, 3, 0.4), (28, 30, 27, 30, 0.6)
    found = islands(opacities_with(OBJECT, thin, beyond_a_gap, fog, island))
    assert found.nonzero().tolist() == [[0, y, x] for y in (28, 29) for x in (27, 28, 29)]


def test_a_large_thin_part_is_not_the_object():
    frame = [(0, 1, 0, 32, 1.0), (0, 32, 0, 1, 1.0), (0, 32, 31, 32, 1.0), (31, 32, 0, 32, 1.0)]
    body = (12, 20, 12, 20, 1.0)
    assert islands(opacities_with(body, *frame)).sum() == 4 * 31


def test_the_longest_way_through_an_object_is_found():
    rows = [(row, row + 1, 0, 32, 1.0) for row in range(0, 32, 4)]
    turns = [(row, row + 5, 31 * (row // 4 % 2 == 0), 31 * (row // 4 % 2 == 0) + 1, 1.0)
             for row in range(0, 28, 4)]  # fmt: skip
    found = islands(opacities_with(*rows[:3], *turns[:2]))
    assert not found.any()


@pytest.mark.parametrize("size", [16, 48, 64, 100])
def test_islands_are_the_parts_farther_than_a_cell_from_the_object(size):
    rng = torch.Generator().manual_seed(size)
    opacities = torch.zeros(1, size, size)
    opacities.view(-1)[torch.randperm(size**2, generator=rng)[:12]] = 1
    middle = slice(3 * size // 8, 5 * size // 8)
    opacities[0, middle, middle] = 1
    side = math.ceil(size / 32)
    places = opacities[0].nonzero()
    cells = places // side
    is_near = (cells[:, None] - cells).abs().amax(-1) <= 2
    _, labels = scipy.sparse.csgraph.connected_components(is_near.numpy())
    labels = torch.from_numpy(labels)
    is_apart = labels != labels.bincount().argmax()
    assert 3 < is_apart.sum() < len(places)
    assert torch.equal(islands(opacities)[0].nonzero(), places[is_apart])


def test_the_penalty_on_islands_is_their_mean_opacity_and_leaves_the_object_alone():
    island = (28, 30, 27, 30, 0.6)
    opacities = opacities_with(OBJECT, island).requires_grad_()
    loss = on_islands(opacities)
    loss.backward()
    assert loss.item() == pytest.approx(6 * 0.6 / 32**2)
    assert opacities.grad.count_nonzero() == 6
    assert opacities.grad[0, 28, 27].item() == pytest.approx(1 / 32**2)


def test_an_empty_image_and_one_full_of_density_have_no_islands():
    assert not islands(torch.stack([torch.zeros(16, 16), torch.ones(16, 16)])).any()


def test_identity_is_zero_without_heads():
    poses = Poses(torch.ones(2), torch.ones(2))
    loss = identity(Verdict(torch.zeros(2)), torch.zeros(2, 3), poses, z_lambda=1, pos_lambda=1)
    assert loss.item() == 0
