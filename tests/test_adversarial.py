"""Training steps: averages, random streams, gradient accumulation, skipped updates."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import curriculums
from config.stage import OptimizerOptions, Precision
from generators.sampling import Purpose, stream
from training import adversarial, losses
from training.adversarial import AdversarialGame, Fakes
from training.ema import ExponentialMovingAverage

TINY = ["hidden_dim=8", "num_layers=2", "mapping_hidden_dim=8", "latent_dim=4", "0.num_steps=3",
        "discriminator_width=8", "0.img_size=8", "0.batch_size=4"]  # fmt: skip


def tiny_game(*overrides, name="Demo", **options):
    curriculum = curriculums.load(name, overrides=[*TINY, *overrides])
    torch.manual_seed(0)
    game = AdversarialGame(
        curriculum.build_generator(),
        curriculum.build_discriminator(),
        OptimizerOptions(**options),
        Precision(),
        seed=3,
    )
    return game, curriculum


def real_images(count=4, size=8):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def parameters_of(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def test_average_is_the_closed_product_with_warm_up():
    parameter = nn.Parameter(torch.zeros(()))
    average = ExponentialMovingAverage([parameter], decay=0.25)
    expected = 0.0
    for n, value in enumerate([1.0, -2.0, 5.0, 0.5], start=1):
        parameter.data.fill_(value)
        average.update([parameter])
        decay = min(0.25, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        assert average.shadow[0].item() == pytest.approx(expected)
    assert ExponentialMovingAverage([parameter], 0.999).num_updates == 0


def test_averaged_is_a_copy():
    layer = nn.Linear(2, 2)
    average = ExponentialMovingAverage(layer.parameters(), 0.9)
    before = average.averaged(layer)
    layer.weight.data.add_(1)
    assert not torch.equal(before.weight, layer.weight)
    assert not before.weight.requires_grad


def test_streams_depend_on_seed_rank_step_and_purpose():
    places = [(0, 0, 0, Purpose.SCENES), (1, 0, 0, Purpose.SCENES), (0, 1, 0, Purpose.SCENES),
              (0, 0, 1, Purpose.SCENES), (0, 0, 0, Purpose.SAMPLES)]  # fmt: skip
    draws = [torch.rand(4, generator=stream(*place)).tolist() for place in places]
    again = torch.rand(4, generator=stream(*places[2])).tolist()
    assert len({tuple(draw) for draw in draws}) == len(places)
    assert again == draws[2]


def test_a_step_changes_both_networks_and_the_averages():
    game, curriculum = tiny_game()
    before = parameters_of(game.generator), parameters_of(game.discriminator)
    terms = game.step(real_images(), curriculum.at(0))
    assert {"d_real", "d_fake", "d_r1", "g_fake"} <= set(terms)
    assert not any(term.requires_grad for term in terms.values())
    for network, old in zip((game.generator, game.discriminator), before, strict=True):
        moved = [not torch.equal(a, b) for a, b in zip(network.parameters(), old, strict=True)]
        assert any(moved)
    assert [average.num_updates for average in game.averages] == [1, 1]


@pytest.mark.parametrize(("key", "term", "mean"), [
    ("opacity_lambda", "g_opacity", 4 * (0.25 + 0.75 * 0.25) / 64),
    ("island_lambda", "g_islands", 0.75 / 64),
])  # fmt: skip
def test_penalties_on_opacities_reach_the_generator_by_their_weights(key, term, mean):
    others = {"opacity_lambda", "island_lambda"} - {key}
    game, curriculum = tiny_game(f"{key}=8", f"0.{key}=8", *(f"{other}=0" for other in others),
                                 *(f"0.{other}=0" for other in others))  # fmt: skip
    opacities = torch.zeros(4, 8, 8)
    opacities[:, :3, :3] = 1
    opacities[:, 7, 0], opacities[:, 7, 7] = 0.5, 0.75  # fog, and an island
    opacities.requires_grad_()
    stage = curriculum.at(0)
    scenes = game.draw_scenes(4, stage, rng=torch.Generator().manual_seed(2))
    rng = torch.Generator().manual_seed(0)
    images = game.generate(scenes, stage, rng=rng).images
    shared = Fakes(images, opacities, scenes)
    terms = game.generator_step(real_images(), scenes, stage, rng=rng, shared=shared)
    assert {name for name in terms if name in ("g_opacity", "g_islands")} == {term}
    assert terms[term].item() == pytest.approx(8 * mean)
    assert opacities.grad is not None


def test_the_penalties_on_slopes_train_the_generator_alone():
    surface = "surface_width=0.01", "density_scale=0.05"
    weights = "eikonal_lambda=2", "smoothness_lambda=3", "r1_lambda=0", "0.r1_lambda=0"
    game, curriculum = tiny_game(*surface, *weights)
    before = parameters_of(game.discriminator)
    stage = curriculum.at(0)
    shape = (4, adversarial.SLOPE_POINTS, 3)
    rng, side = torch.Generator().manual_seed(5), stage.render.visible_side
    points, steps = (torch.rand(shape, generator=rng) - 0.5 for _ in range(2))
    steps *= adversarial.NEIGHBOR * side / steps.norm(dim=-1, keepdim=True)
    scenes = game.draw_scenes(4, stage, rng=torch.Generator().manual_seed(2))
    siren, film = game.generator.siren, game.generator.mapping(scenes.latents)
    distances = partial(siren.distances, film=film)
    slopes = losses.Slopes.at(points * side, distances)
    wanted = {
        "g_eikonal": 2 * losses.eikonal(slopes),
        "g_unevenness": 3 * losses.unevenness(distances, slopes, steps, adversarial.NEAR * side),
    }
    sum(wanted.values()).backward()
    gradient = siren.final_layer.weight.grad.clone()
    found = game._shape_terms(scenes.latents, stage, torch.Generator().manual_seed(5))
    game.generator.zero_grad()
    sum(found.values()).backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(siren.final_layer.weight.grad, gradient)
    assert gradient.abs().max() > 0
    rng = torch.Generator().manual_seed(0)
    terms = game.generator_step(real_images(), scenes, stage, rng=rng)
    for name, term in found.items():
        assert terms[name].item() == pytest.approx(term.item(), rel=0.5)  # other points
    assert all(torch.equal(*pair) for pair in zip(parameters_of(game.discriminator), before,
                                                  strict=True))  # fmt: skip


def test_other_renders_of_a_run_have_the_precision_of_its_steps():
    """Previews and FID are rendered outside of a step, where no autocast says so."""
    game, _ = tiny_game("hidden_dim=256")  # narrower fields take float32 on processors
    half = Precision(autocast_dtype=torch.bfloat16)
    AdversarialGame(game.generator, game.discriminator, OptimizerOptions(), half, seed=0)
    averaged = game.averages[0].averaged(game.generator)
    film = averaged.mapping(torch.ones(1, averaged.z_dim))
    points, directions = torch.rand(2, 1, 9, 3)
    with torch.no_grad():
        found = averaged.field(film)(points, directions)
        whole = averaged.siren(points, directions, film)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = averaged.siren(points, directions, film)
    assert torch.equal(found, expected.float())
    assert not torch.equal(found, whole)


def test_the_same_step_gives_the_same_parameters():
    results = []
    for _ in range(2):
        game, curriculum = tiny_game()
        game.step(real_images(), curriculum.at(0))
        results.append(torch.cat([p.flatten() for p in parameters_of(game.generator)]))
    assert torch.equal(*results)


@pytest.mark.parametrize("splits", [2, 4])
def test_splits_of_a_batch_are_averaged(splits):
    gradients = []
    for count in (1, splits):
        game, curriculum = tiny_game("density_noise_steps=0")
        stage = replace(curriculum.at(0), batch_split=count)
        scenes = game.draw_scenes(4, stage, rng=torch.Generator().manual_seed(0))
        deterministic = _without_jitter(game)
        deterministic.generator_step(real_images(), scenes, stage, rng=torch.Generator())
        gradients.append([p.grad for p in game.generator.parameters()])
    for whole, split in zip(*gradients, strict=True):
        torch.testing.assert_close(split, whole, rtol=1e-4, atol=1e-7)


def test_both_updates_may_share_generated_images(monkeypatch):
    game, curriculum = tiny_game("shares_fakes=true")
    other, _ = tiny_game("shares_fakes=true")
    real, stage = real_images(), curriculum.at(0)
    rendered = []
    generate = AdversarialGame.generate
    monkeypatch.setattr(AdversarialGame, "generate",
                        lambda *args, **kwargs: rendered.append(generate(*args, **kwargs))
                        or rendered[-1])  # fmt: skip
    game.step(real, stage)
    (fakes,) = rendered
    # Once more, by rendering the same scenes with the same random numbers for each update.
    other._set_rates(stage)
    rng = [stream(3, 0, 0, Purpose.SAMPLES) for _ in range(2)]
    other.discriminator_step(real, other.generate(fakes.scenes, stage, rng=rng[0]), stage)
    other.generator_step(real, fakes.scenes, stage, rng=rng[1])
    for network in ("generator", "discriminator"):
        for found, wanted in zip(*(parameters_of(getattr(g, network)) for g in (game, other)),
                                 strict=True):  # fmt: skip
            assert torch.equal(found, wanted)


def _without_jitter(game):
    generate = game.generate
    game.generate = lambda scenes, stage, *, rng: generate(scenes, stage, rng=None)
    return game


def test_the_mean_gradient_is_clipped_once():
    game, curriculum = tiny_game("grad_clip=0.001")
    game.step(real_images(), curriculum.at(0))
    for network in (game.generator, game.discriminator):
        norms = torch.stack([p.grad.norm() for p in network.parameters() if p.grad is not None])
        assert norms.norm().item() <= 0.001 * (1 + 1e-4)


def test_synchronize_is_called_once_per_update():
    calls = []
    game, curriculum = tiny_game("0.batch_split=2", "shares_fakes=false")
    game.synchronize = lambda tensors: calls.append(len(tensors))
    game.step(real_images(), curriculum.at(0))
    assert len(calls) == 2


def test_unique_lr_slows_the_mapping_network():
    game, curriculum = tiny_game(has_slow_mapping=True)
    game.step(real_images(), curriculum.at(0))
    field, mapping = game.generator_optimizer.param_groups
    assert mapping["lr"] == pytest.approx(0.05 * field["lr"])
    names = {id(p) for p in game.generator.siren.mapping_network.parameters()}
    assert {id(p) for p in mapping["params"]} == names
    assert len(field["params"]) + len(mapping["params"]) == len(list(game.generator.parameters()))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_skipped_and_counted(value):
    game, curriculum = tiny_game()
    before = parameters_of(game.discriminator)
    bad = real_images()
    bad[0, 0, 0, 0] = value
    game.step(bad, curriculum.at(0))
    assert all(
        torch.equal(a, b) for a, b in zip(game.discriminator.parameters(), before, strict=True)
    )
    assert all(p.isfinite().all() for p in game.generator.parameters())
    assert game.health.skipped.item() == 1
    game.step(real_images(), curriculum.at(1))
    assert (game.health.skipped.item(), game.health.in_a_row.tolist()) == (1, [0, 0])


def test_bad_updates_in_a_row_are_counted_for_each_network():
    game, curriculum = tiny_game()
    nan = torch.full((4, 3, 8, 8), float("nan"))
    for step in range(3):
        game.step(nan, curriculum.at(step))  # the generator's updates in between are finite
    assert game.health.skipped.item() == 3
    assert game.health.worst() == ("discriminator", 3)
    with torch.no_grad():
        game.discriminator.final_layer.weight.fill_(float("nan"))
    for step in range(3):
        game.step(real_images(), curriculum.at(step))
    assert game.health.skipped.item() == 9
    assert game.health.longest_row.tolist() == [3, 6]


def broken_losses(monkeypatch, value, is_flat):
    """Make the loss of fakes return value; is_flat: with finite gradients."""
    logistic = losses.logistic

    def broken(logits, *, is_real):
        loss = logistic(logits, is_real=is_real)
        return loss + value if is_flat else loss * value

    monkeypatch.setattr(losses, "logistic", broken)


@pytest.mark.parametrize("is_flat", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_skips_the_update_even_if_its_gradient_is(
    monkeypatch, value, is_flat
):
    game, curriculum = tiny_game()
    before = parameters_of(game.generator) + parameters_of(game.discriminator)
    with monkeypatch.context() as patched:
        broken_losses(patched, value, is_flat)
        game.step(real_images(), curriculum.at(0))
    after = parameters_of(game.generator) + parameters_of(game.discriminator)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert game.health.skipped.item() == 2


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_damaged_loss_scale_is_not_taken_for_back_off(scale):
    game, curriculum = tiny_game()
    game.precision = Precision(is_scaled=True)
    game.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = parameters_of(game.generator) + parameters_of(game.discriminator)
    for step in range(5):
        game.step(real_images(), curriculum.at(step))
    after = parameters_of(game.generator) + parameters_of(game.discriminator)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert game.health.longest_row.tolist() == [5, 5]


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_damaged_loss_scale_counts_alike_on_all_processes(scale):
    sent, counts = [], []
    for own in (scale, 1024.0):  # the second process gets the mean with what the first has sent
        game, curriculum = tiny_game()
        game.precision = Precision(is_scaled=True)
        game.scaler = torch.amp.GradScaler("cpu", init_scale=own)
        others = iter(sent)

        def synchronize(tensors, others=others):
            sent.append([tensor.clone() for tensor in tensors])
            for tensor, other in zip(tensors, next(others, tensors), strict=True):
                tensor.add_(other).div_(2)

        game.synchronize = synchronize
        for step in range(2):
            game.step(real_images(), curriculum.at(step))
        counts.append((game.health.skipped.item(), game.health.longest_row.tolist()))
    assert counts == [(4, [2, 2])] * 2


def test_an_overflow_of_scaled_gradients_alone_is_a_back_off():
    game, curriculum = tiny_game()
    game.precision = Precision(is_scaled=True)
    game.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for step in range(3):
        game.step(100 * real_images(), curriculum.at(step))
    assert game.scaler.get_scale() == 2.0**124
    assert game.health.skipped.item() == 0


@pytest.mark.parametrize("loss", [[], ["gan_loss=relativistic", "r2_lambda=1"]])
@pytest.mark.parametrize("scale", [adversarial.INITIAL_LOSS_SCALE, 2.0**20])
def test_r1_in_float16_does_not_overflow_at_the_first_step_nor_at_a_grown_scale(scale, loss):
    game, curriculum = tiny_game(*loss)
    game.precision = Precision(autocast_dtype=torch.float16, is_scaled=True)
    game.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    critic, reals = game.discriminator, real_images()
    terms, _ = game._penalized(critic, reals, fakes_of(game, curriculum), curriculum.at(0))
    assert all(term.isfinite() for term in terms.values())
    assert game._observe(critic, reals, curriculum.at(0)).gradients.isfinite().all()
    if scale == adversarial.INITIAL_LOSS_SCALE:
        before = parameters_of(game.discriminator)
        game._set_rates(curriculum.at(0))
        game.discriminator_step(real_images(), fakes_of(game, curriculum), curriculum.at(0))
        pairs = zip(game.discriminator.parameters(), before, strict=True)
        assert any(not torch.equal(a, b) for a, b in pairs)
        assert game.health.skipped.item() == 0


def fakes_of(game, curriculum):
    scenes = game.draw_scenes(4, curriculum.at(0), rng=torch.Generator().manual_seed(0))
    return Fakes(real_images(), torch.zeros(4, 8, 8), scenes)


def test_what_is_copied_before_a_step_has_one_dtype(monkeypatch):
    """On CUDA, a list of several dtypes would be copied tensor by tensor."""
    game, curriculum = tiny_game()
    game.synchronize = lambda tensors: None
    dtypes, copy = [], torch._foreach_copy_

    def watched(into, tensors):
        dtypes.append({tensor.dtype for tensor in (*into, *tensors)})
        copy(into, tensors)

    monkeypatch.setattr(torch, "_foreach_copy_", watched)
    for step in range(3):
        game.step(real_images(), curriculum.at(step))
    assert dtypes == [{torch.float32}]


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_that_loses_a_process_leaves_the_state_before_it(steps_before, failing_call):
    game, curriculum = tiny_game()
    calls = []

    def lose(_):
        calls.append(0)
        if len(calls) == failing_call:
            raise ConnectionError

    game.synchronize = lambda tensors: None
    for step in range(steps_before):
        game.step(real_images(), curriculum.at(step))
    whole, _ = tiny_game()
    for step in range(steps_before + 1):
        whole.step(real_images(), curriculum.at(step))
    game.synchronize = lose
    with pytest.raises(ConnectionError):
        game.step(real_images(), curriculum.at(steps_before))
    game.synchronize = None
    game.step(real_images(), curriculum.at(steps_before))  # as if nothing had been
    for one, two in zip(game.tensors(), whole.tensors(), strict=True):
        assert torch.equal(one, two)
    for name in ("generator_optimizer", "discriminator_optimizer"):
        moments = [getattr(each, name).state_dict()["state"] for each in (game, whole)]
        torch.testing.assert_close(*moments, rtol=0, atol=0)


def test_r1_is_applied_every_interval_with_its_mean_strength():
    game, curriculum = tiny_game("r1_interval=4")
    present = ["d_r1" in game.step(real_images(), curriculum.at(step)) for step in range(6)]
    assert present == [True, False, False, False, True, False]
    every, _ = tiny_game("r1_interval=1")
    rare, _ = tiny_game("r1_interval=4")
    stage = curriculum.at(0)
    strong = rare.step(real_images(), stage)["d_r1"]
    weak = every.step(real_images(), replace(stage, r1_interval=1))["d_r1"]
    assert strong.item() == pytest.approx(4 * weak.item(), rel=1e-5)


def test_top_k_leaves_the_worst_fakes_without_gradient():
    game, curriculum = tiny_game()
    stage = replace(curriculum.at(0), topk_share=0.5)
    scenes = game.draw_scenes(4, stage, rng=torch.Generator().manual_seed(0))
    shown = []
    generate = game.generate

    def watched(*args, **kwargs):
        shown.append(generate(*args, **kwargs))
        shown[-1].images.retain_grad()
        return shown[-1]

    game.generate = watched
    game.generator_step(real_images(), scenes, stage, rng=torch.Generator().manual_seed(0))
    images = shown[0].images
    touched = images.grad.flatten(1).abs().sum(1) > 0
    logits = game.discriminator(images, stage.alpha).logits
    assert touched.sum() == 2
    assert set(np.flatnonzero(touched)) == set(logits.topk(2).indices.tolist())
