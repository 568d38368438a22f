"""Files in the exact published layout load, and render as with the published code.

`published_files` makes them, `published_render` is the published render written once more.
"""

import copy
import itertools
from dataclasses import replace

import published_files
import pytest
import torch
from published_render import render as published_render
from torch import nn

import curriculums
from checkpoint_io import checkpoints
from generators.cameras import Poses
from generators.volumetric_rendering import RenderOptions
from rendering import viewing
from siren.film import Film
from system.errors import UsageError
from system.flags import ArgumentParser


def load_generator(path, **options):
    """Load the generator of a published file, with the cameras of CelebA."""
    celeba = curriculums.load("CelebA")
    return checkpoints.load_generator(path, published_curriculum=celeba, **options)


def assert_holds(network, parameters):
    """Assert that network has these named parameters in this order."""
    own = list(network.named_parameters())
    expected = list(parameters)
    assert [name for name, _ in own] == [name for name, _ in expected]
    for (name, value), (_, wanted) in zip(own, expected, strict=True):
        assert value.dtype == torch.float32
        assert torch.equal(value, wanted.float()), name


def shifted(module, by):
    return [(name, value + by) for name, value in module.named_parameters()]


@pytest.fixture
def small(tmp_path):
    """Write a published generator with both averages; return its path and the generator."""
    network = published_files.generator()
    published_files.save(network, tmp_path / "generator.pth")
    ema = published_files.ExponentialMovingAverage(network.parameters(), 0.999)
    published_files.save(ema, tmp_path / "ema.pth")
    ema2 = published_files.ExponentialMovingAverage(network.parameters(), 0.9999)
    published_files.save(ema2.state_dict(), tmp_path / "ema2.pth")
    return tmp_path / "generator.pth", network


def test_whole_objects_from_before_pytorch_1_6_are_refused(tmp_path):
    path = tmp_path / "generator.pth"
    published_files.save(published_files.generator(), path, legacy=True)
    with pytest.raises(UsageError, match="holds whole objects as PyTorch before 1.6 wrote them"):
        load_generator(path)


@pytest.mark.parametrize("model", ["TALLSIREN", "SPATIALSIRENBASELINE", "EmbeddingPiGAN256"])
def test_every_field_loads(tmp_path, model):
    network = published_files.generator(model)
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    assert_holds(saved.generator, network.named_parameters())
    settings = saved.curriculum.settings
    assert (settings.model, settings.hidden_dim, settings.num_layers) == (model, 8, 2)
    assert (settings.latent_dim, settings.mapping_hidden_dim, settings.box_side) == (6, 8, None)
    assert (saved.step, saved.average, saved.is_published) == (40, "none", True)
    assert saved.curriculum.name == "CelebA"
    assert settings.fov == 12


@pytest.mark.slow
def test_the_largest_field_loads(tmp_path):
    network = published_files.generator("EmbeddingPiGAN128", num_layers=8, width=128)
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    assert_holds(saved.generator, network.named_parameters())
    assert saved.curriculum.settings.hidden_dim is None  # it is the class's own


def test_averages_are_taken_by_position_in_both_forms(small):
    path, network = small
    saved = load_generator(path)
    assert_holds(saved.generator, shifted(network, 0.999 * 0.01))
    assert (saved.step, saved.average) == (42, "ema")  # the count of the average, not the step
    saved = load_generator(path, ema="ema2")
    assert_holds(saved.generator, shifted(network, 0.9999 * 0.01))
    assert saved.average == "ema2"
    assert load_generator(path.with_name("ema2.pth")).average == "ema2"
    raw = load_generator(path, ema="none")
    assert_holds(raw.generator, network.named_parameters())


def test_an_average_that_was_not_counted_leaves_the_generators_step(small):
    path, network = small
    ema = published_files.ExponentialMovingAverage(network.parameters(), 0.999)
    ema.num_updates = None
    ema.collected_params = [p.clone() for p in network.parameters()]
    published_files.save(ema, path.with_name("ema.pth"))
    saved = load_generator(path)
    assert (saved.step, saved.average) == (40, "ema")


def test_a_snapshot_finds_its_own_average(small):
    path, network = small
    for name in ("generator", "ema"):
        path.with_name(f"{name}.pth").rename(path.with_name(f"05--12:30--{name}.pth"))
    for name in ("generator", "ema"):
        saved = load_generator(path.with_name(f"05--12:30--{name}.pth"))
        assert_holds(saved.generator, shifted(network, 0.999 * 0.01))
    path.with_name("05--12:30--generator.pth").unlink()
    with pytest.raises(UsageError, match="05--12:30--generator.pth must lie beside it"):
        load_generator(path.with_name("05--12:30--ema.pth"))


def test_half_precision_becomes_float32(tmp_path):
    network = published_files.generator().half()
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    assert_holds(saved.generator, network.named_parameters())


def test_the_scale_of_space_is_the_files(tmp_path):
    network = published_files.generator()
    network.siren.gridwarper.scale_factor = 2 / 0.6
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    assert saved.curriculum.settings.box_side == pytest.approx(0.6)
    points = torch.randn(1, 5, 3)
    torch.testing.assert_close(
        saved.generator.siren.encode(points), network.siren.gridwarper(points)
    )


def test_the_cameras_are_the_curriculums_and_the_networks_the_files(tmp_path):
    published_files.save(published_files.generator("TALLSIREN"), tmp_path / "generator.pth")
    carla = curriculums.load("CARLA")
    saved = checkpoints.load_generator(tmp_path / "generator.pth", curriculum=carla)
    assert (saved.curriculum.name, saved.curriculum.settings.fov) == ("CARLA", 30)
    assert saved.curriculum.settings.hidden_dim == 8
    demo = curriculums.load("Demo")  # has a density scale of its own
    saved = checkpoints.load_generator(tmp_path / "generator.pth", curriculum=demo)
    assert saved.curriculum.settings.density_scale == 1
    assert saved.curriculum.settings.scene_radius == demo.settings.scene_radius


def test_commands_say_which_cameras_they_take(small, capsys):
    parser = ArgumentParser("x")
    viewing.add_generator(parser)
    viewing.open_generator(parser.parse_args([str(small[0])]))
    assert "taking the cameras of CelebA" in capsys.readouterr().err
    viewing.open_generator(parser.parse_args([str(small[0]), "--curriculum", "cats"]))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", published_files.DISCRIMINATORS)
def test_every_discriminator_loads(tmp_path, name):
    network = published_files.discriminator(name)
    published_files.save(network, tmp_path / "discriminator.pth")
    base = curriculums.load("CelebA", overrides=["latent_dim=6"])
    adapted, judge = checkpoints.load_discriminator(tmp_path / "discriminator.pth", base)
    assert_holds(judge, network.named_parameters())
    assert adapted.settings.discriminator == name
    assert adapted.settings.discriminator_width == 8


def test_a_discriminator_of_any_widths_loads(tmp_path):
    network = published_files.discriminator("CCSDiscriminator", widths=(4, 4, 4, 4, 6, 8, 8, 9))
    published_files.save(network, tmp_path / "discriminator.pth")
    base = curriculums.load("Demo", overrides=["latent_dim=6"])
    adapted, judge = checkpoints.load_discriminator(tmp_path / "discriminator.pth", base)
    assert_holds(judge, network.named_parameters())
    assert adapted.settings.discriminator_width == (9, 8, 8, 6, 4, 4, 4, 4)


def rename(network):
    network.siren.last = network.siren.final_layer
    del network.siren.final_layer


def another_class(network):
    network.siren = nn.Linear(3, 4)


BAD_GENERATORS = {
    "lacks siren.network.1.layer.bias": lambda n: setattr(n.siren.network[1].layer, "bias", None),
    r"shape \[8, 5\], not \[8, 8\]": lambda n: setattr(
        n.siren.network[1].layer, "weight", nn.Parameter(torch.zeros(8, 5))
    ),
    "has siren.extra, which is unknown": lambda n: setattr(
        n.siren, "extra", nn.Parameter(torch.zeros(1))
    ),
    "lacks siren.final_layer.weight": rename,
    "not finite, in siren.final_layer.bias": lambda n: n.siren.final_layer.bias.data.fill_(
        float("nan")
    ),
    "of type int64, not float32": lambda n: n.siren.final_layer.register_buffer(
        "bias", torch.zeros(1, dtype=torch.int64)
    ),
    "without its gridwarper": lambda n: delattr(n.siren, "gridwarper"),
    "scale_factor above 0": lambda n: setattr(n.siren.gridwarper, "scale_factor", "2"),
    "without a field that is known": another_class,
    "as its step": lambda n: setattr(n, "step", -3),
    "holds the module siren.copy": lambda n: setattr(n.siren, "copy", n.siren.final_layer),
}


@pytest.mark.parametrize("complaint", BAD_GENERATORS)
def test_a_generator_that_is_not_right_is_one_line(tmp_path, complaint):
    network = published_files.generator()
    if "int64" in complaint:
        del network.siren.final_layer.bias
    BAD_GENERATORS[complaint](network)
    path = tmp_path / "generator.pth"
    published_files.save(network, path)
    with pytest.raises(UsageError, match=complaint) as caught:
        load_generator(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_an_average_that_does_not_fit_is_one_line(small):
    path, network = small
    beside = path.with_name("ema.pth")
    for change, complaint in (
        (lambda p: p[:-1], "holds 17 averages for 18 parameters"),
        (lambda p: [*p[:-1], torch.zeros(3)], r"shape \[3\], not \[48\]"),
        (lambda p: [*p[:-1], p[-1] / 0], "not finite, in siren.mapping_network.network.6.bias"),
        (lambda p: [*p[:-1], 3], "no list of tensors"),
        (tuple, "no list of tensors"),
    ):
        ema = published_files.ExponentialMovingAverage(network.parameters(), 0.999)
        ema.shadow_params = change(ema.shadow_params)
        for form in (ema, ema.state_dict()):
            published_files.save(form, beside)
            with pytest.raises(UsageError, match=f"ema.pth: .*{complaint}"):
                load_generator(path)


def test_another_object_than_a_generator_is_named(tmp_path):
    path = tmp_path / "generator.pth"
    for other, complaint in (
        (published_files.discriminator("CCSDiscriminator"), "a published CCSDiscriminator, not"),
        (published_files.optimizer_state([torch.zeros(2)]), "a dict of state, param_groups"),
        ([1, 2], "a list, not a generator"),
        (torch.zeros(2), "a single tensor, not"),
        ({}, "an empty dict, not"),
    ):
        published_files.save(other, path)
        with pytest.raises(UsageError, match=complaint):
            load_generator(path)


def film_of(network, count, rng):
    frequencies, phases = network.siren.mapping_network(
        torch.randn(count, published_files.Z_DIM, generator=rng)
    )
    return frequencies.detach(), phases.detach()


BACKS = {"last_sample": (True, False), "white": (False, True), "black": (False, False)}
RENDERS = list(itertools.product(
    ("relu", "softplus"), BACKS, (True, False), (0.0, 0.7), (True, False)))  # fmt: skip


@pytest.fixture(params=[(torch.float32, 5e-4), (torch.float64, 1e-8)], ids=["float32", "float64"])
def precision(request):
    """A type to compute in, and how far results may be from the published ones."""
    yield request.param
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "model",
    ["TALLSIREN", "SPATIALSIRENBASELINE", "EmbeddingPiGAN256",
     pytest.param("EmbeddingPiGAN128", marks=pytest.mark.slow)],
)  # fmt: skip
@torch.no_grad()
def test_renders_in_48_settings_are_the_published_ones(tmp_path, model, precision):
    dtype, tolerance = precision
    torch.manual_seed(0)
    network = published_files.generator(model, num_layers=3, width=16)
    network.siren.final_layer.weight.mul_(30)
    network.siren.final_layer.bias.fill_(5)  # neither empty nor opaque
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    torch.set_default_dtype(dtype)
    network.to(dtype)
    saved.generator.to(dtype)
    frequencies, phases = film_of(network, 2, torch.Generator().manual_seed(2))
    pitch, yaw = torch.tensor([1.3, 1.7]), torch.tensor([1.2, 1.9])
    near, far, fov, steps, size = 0.88, 1.12, 12.0, 9, 7
    for clamp, back, hierarchical, std, lock in RENDERS:
        torch.manual_seed(5)
        last_back, white_back = BACKS[back]
        wanted, wanted_depth = published_render(
            network.siren, frequencies, phases, pitch, yaw, size=size, steps=steps, fov=fov,
            near=near, far=far, clamp=clamp, last_back=last_back, white_back=white_back,
            hierarchical=hierarchical, std=std, lock=lock)  # fmt: skip
        options = RenderOptions(
            image_size=size, fov_degrees=fov, near=near, far=far, num_steps=steps,
            hierarchical=hierarchical, density_activation=clamp, density_noise=std,
            background=back, lock_view_dependence=lock)  # fmt: skip
        view = saved.generator.render(
            Film(frequencies, phases),
            Poses(pitch, yaw),
            options,
            rng=torch.Generator().manual_seed(5),
        )
        assert wanted.std() > 0.01
        torch.testing.assert_close(view.images, wanted, atol=tolerance, rtol=0)
        torch.testing.assert_close(view.depths, wanted_depth, atol=tolerance, rtol=0)


@torch.no_grad()
def test_a_render_at_full_width_is_the_published_one(tmp_path):
    network = published_files.generator(num_layers=8, width=256)
    curriculum = curriculums.load("CelebA", overrides=["latent_dim=6", "mapping_hidden_dim=8"])
    start = curriculum.build_generator().state_dict()
    network.load_state_dict(start)  # as the published code starts it
    network.siren.final_layer.weight.mul_(20)
    published_files.save(network, tmp_path / "generator.pth")
    saved = load_generator(tmp_path / "generator.pth")
    frequencies, phases = film_of(network, 1, torch.Generator().manual_seed(0))
    pitch, yaw = torch.tensor([1.5]), torch.tensor([1.7])
    torch.manual_seed(1)
    wanted, _ = published_render(
        network.siren, frequencies, phases, pitch, yaw, size=8, steps=12, fov=12, near=0.88,
        far=1.12, hierarchical=True, std=0.0, clamp="relu", last_back=True,
        white_back=False)  # fmt: skip
    options = replace(saved.curriculum.preview_render(0, 8), spreads_weights=False)
    assert options.background == "last_sample"
    view = saved.generator.render(
        Film(frequencies, phases), Poses(pitch, yaw), options,
        rng=torch.Generator().manual_seed(1))  # fmt: skip
    torch.testing.assert_close(view.images, wanted, atol=1e-4, rtol=0)


def test_loading_changes_no_random_stream(small):
    torch.manual_seed(3)
    before = copy.deepcopy(torch.get_rng_state())
    load_generator(small[0])
    assert torch.equal(torch.get_rng_state(), before)
