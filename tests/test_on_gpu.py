"""What a GPU computes, beside the CPU: training, resuming, pictures, a fit to a photo, FID."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from faults import fids
from test_distributed import two_places

import curriculums
import render_multiview_images
import train
from checkpoint_io import checkpoints
from distributed import processes
from distributed.processes import Place
from generators import inversion
from generators.inversion import FitOptions, FitTask, Photo
from generators.sampling import stream
from metrics.frechet import Gaussian
from rendering import filming, viewing
from siren.siren import EmbeddingPiGAN128
from training import adversarial, fid
from training.adversarial import AdversarialGame
from training.setup import choose_precision

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
CPU = torch.device("cpu")
DEMO = Path(__file__).parent.parent / "assets" / "demo" / "generator.pth"
SMALL = ["hidden_dim=64", "num_layers=3", "mapping_hidden_dim=32", "latent_dim=16",
         "discriminator_width=32", "0.img_size=16"]  # fmt: skip
CURRICULA = {
    "CelebA": [*SMALL, "0.batch_size=6", "0.batch_split=2"],
    "CARLA": [*SMALL, "0.batch_size=6", "0.num_steps=8"],
    "Demo": [*SMALL, "0.batch_size=6", "r1_lambda=10"],
    "CelebA128": [*SMALL, "0.batch_size=6", "model=EmbeddingPiGAN128", "unique_lr=true"],
}
# Relative errors of the loss terms and of each network's gradient as a whole: float32 differs in
# the order of its sums, half precision by what its operands are rounded to.
TOLERANCE = {"fp32": (1e-4, 1e-3), "fp16": (2e-2, 5e-2), "bf16": (5e-2, 2e-1)}


@pytest.fixture(autouse=True)
def _same_arithmetic(monkeypatch):
    """Both devices draw the same numbers, and float32 products are not rounded to TF32."""

    monkeypatch.setattr(adversarial, "stream", lambda *key, device=CPU: stream(*key))
    monkeypatch.setattr(EmbeddingPiGAN128, "embedding_shape", (32, 5, 0.1))
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    for switch in switches:
        switch.allow_tf32 = False
    yield
    for switch, was_on in zip(switches, before, strict=True):
        switch.allow_tf32 = was_on


def curriculum_for(name, precision):
    """A small curriculum whose step changes little when operands are rounded to a precision.

    The farthest sample stands for the rest of its ray. With relu it turns the ray from clear to
    opaque where its density crosses 0, so rounding to half precision would switch single pixels.
    Demo's scene is bounded: there it stands for its own interval alone.
    """
    is_smooth = precision == "fp32" or name == "Demo"
    more = [] if is_smooth else ["clamp_mode=softplus"]
    return curriculums.load(name, overrides=[*CURRICULA[name], *more])


def game_on(device, curriculum, precision):
    torch.manual_seed(0)
    return AdversarialGame(
        curriculum.build_generator().to(device),
        curriculum.build_discriminator().to(device),
        curriculum.optimizer_options(),
        choose_precision(precision, torch.device(device), is_scaled=True),
        seed=3,
    )


def settled_step(game, real, stage):
    """Repeat a step, as training does, until no gradient overflows; return its terms.

    Each overflow lowers the loss scale, which starts high.
    """
    for _ in range(8):
        scale = game.scaler.get_scale()
        terms = game.step(real.to(game.device), stage)
        if game.scaler.get_scale() >= scale:
            return terms
    raise AssertionError(f"gradients overflow even at a loss scale of {scale}")


def relative_error(found, expected):
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def gradient(network):
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in network.parameters()]
    return torch.cat([part.flatten() for part in found])


def parameters(network):
    return torch.cat([p.detach().flatten().cpu() for p in network.parameters()])


def networks(game):
    return {"generator": game.generator, "discriminator": game.discriminator}


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *(("CelebA", precision) for precision in ("fp32", "fp16", "bf16")),
        *((name, precision) for name in ("CARLA", "Demo") for precision in ("fp32", "fp16")),
        ("CelebA128", "fp16"),
    ],
)
def test_a_training_step_equals_that_of_the_cpu(name, precision, counted):
    curriculum = curriculum_for(name, precision)
    stage = curriculum.at(0)
    size = stage.render.image_size
    real = torch.rand(stage.batch_size, 3, size, size) * 2 - 1
    expected, found = game_on("cpu", curriculum, "fp32"), game_on(DEVICE, curriculum, precision)
    # At rates of 0 the generator meets the same discriminator on both devices.
    still = replace(stage, generator_lr=0.0, discriminator_lr=0.0)
    terms, found_terms = expected.step(real, still), settled_step(found, real, still)
    of_terms, of_gradients = TOLERANCE[precision]
    assert list(found_terms) == list(terms)
    for key, term in terms.items():
        assert float(found_terms[key]) == pytest.approx(float(term), rel=of_terms, abs=1e-4), key
    errors = {
        kind: relative_error(gradient(networks(found)[kind]), gradient(network))
        for kind, network in networks(expected).items()
    }
    text = ", ".join(f"{kind} {error:.1e}" for kind, error in errors.items())
    scale = found.scaler.get_scale()
    counted(f"{name} in {precision} ({found.field_path()}, loss scale {scale:g}): {text}")
    assert all(error < of_gradients for error in errors.values())
    assert int(found.health.skipped) == 0


def test_updates_of_both_networks_and_of_the_averages_are_those_of_the_cpu():
    curriculum = curriculum_for("CelebA", "fp32")
    games = [game_on(device, curriculum, "fp32") for device in ("cpu", DEVICE)]
    before = {kind: parameters(network) for kind, network in networks(games[0]).items()}
    for step in range(3):
        stage = curriculum.at(step)
        real = torch.rand(stage.batch_size, 3, 16, 16) * 2 - 1
        for game in games:
            game.step(real.to(game.device), stage)
    for kind, start in before.items():
        expected, found = (parameters(networks(game)[kind]) - start for game in games)
        # Adam moves a weight by its whole rate, also where the gradient's sign is rounding.
        assert relative_error(found, expected) < 0.3
    for kept, other in zip(*(game.averages for game in games), strict=True):
        shadows = [torch.cat([s.flatten().cpu() for s in a.shadow]) for a in (kept, other)]
        assert relative_error(shadows[1], shadows[0]) < 1e-3


def run(folder, weights, *more):
    changes = ["num_layers=2", "num_images=8", "preview_size=16", "discriminator_width=16",
               "0.img_size=16", "0.batch_size=4"]  # fmt: skip
    command = ["--curriculum", "Demo", "--device", DEVICE, "--output_dir", str(folder)]
    command += ["--cache_dir", str(folder.parent / "cache"), "--sample_interval", "4"]
    command += ["--eval_freq", "2", *weights, *(w for c in changes for w in ("--set", c)), *more]
    assert train.main(command) == 0
    return torch.load(folder / "training_state.pth", weights_only=True, map_location="cpu")


def numbers(state, network):
    return torch.cat([value.flatten().double() for value in state[network].values()])


def test_two_and_two_steps_are_close_to_four(weights, tmp_path):
    whole = run(tmp_path / "whole", weights, "--max_steps", "4")
    half = run(tmp_path / "parts", weights, "--max_steps", "2")
    parts = run(tmp_path / "parts", weights, "--max_steps", "4", "--resume")
    assert [state["step"] for state in (half, parts, whole)] == [2, 4, 4]
    assert parts["images_seen"] == whole["images_seen"] == 16
    for network in ("generator", "discriminator"):
        start, end, other = (numbers(state, network) for state in (half, whole, parts))
        assert (end - start).norm() > 0
        assert (other - end).norm() < 0.1 * (end - start).norm()  # sums differ in their order
    found = fids(tmp_path / "whole")
    assert list(found) == [2, 4]
    assert fids(tmp_path / "parts") == pytest.approx(found, rel=0.01)
    assert (tmp_path / "parts" / "000004_fixed_ema.png").is_file()


def test_two_processes_train_together(tmp_path, monkeypatch):
    places = two_places(monkeypatch, DEVICE)
    monkeypatch.setattr(processes, "plan", lambda *_: places)
    start, end = (
        run(tmp_path / "two", ["--eval_freq", "0"], "--max_steps", steps, "--resume")
        for steps in ("1", "3")
    )
    assert end["images_seen"] == 2 * 3 * 4
    for network in ("generator", "discriminator"):
        assert numbers(end, network).isfinite().all()
        assert (numbers(end, network) - numbers(start, network)).norm() > 0


def shown(device, precision, *, size=64):
    """Views of two cars from two sides each, as the commands render them."""
    parser = render_multiview_images.build_parser()
    args = parser.parse_args([str(DEMO), "--seeds", "0", "1", "--image_size", str(size),
                              "--device", device, "--precision", precision])  # fmt: skip
    saved = viewing.open_generator(args)
    shots = [
        thing.seen_from(thing.camera.turned(0, yaw))
        for thing in viewing.objects_to_show(saved, args)
        for yaw in (0.0, 0.5)
    ]
    views = filming.views(saved, shots, viewing.render_options(saved, args))
    return [view.images.cpu() for view in views]


def decibels(found, expected):
    error = ((torch.cat(found) - torch.cat(expected)) / 2).square().mean()
    return -10 * math.log10(float(error.clamp(min=1e-20)))


def test_pictures_equal_those_of_the_cpu(counted):
    expected = shown("cpu", "exact")
    assert torch.cat(expected).std() > 0.1  # there is something to see
    exact, fast = (decibels(shown(DEVICE, how), expected) for how in ("exact", "fast"))
    counted(f"exact {exact:.1f} dB, fast {fast:.1f} dB against the CPU's exact pictures")
    assert exact >= 60
    assert fast >= 35


def test_a_command_writes_pictures_and_depths(tmp_path, capsys):
    command = [str(DEMO), "--seeds", "0", "--image_size", "32", "--device", DEVICE, "--depth_map"]
    assert render_multiview_images.main([*command, "--output_dir", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"grid_0.png", "sheet.png"}


def test_a_fit_to_a_photo_descends():
    saved = checkpoints.load_generator(DEMO, device=torch.device(DEVICE))
    (image, *_) = shown("cpu", "exact", size=32)[0]
    photo = Photo(image.to(DEVICE), torch.ones(32, 32, device=DEVICE))
    effort = FitOptions(
        num_candidates=64, num_starts=2, latent_steps=10, film_steps=10, search_size=8
    )
    lowest = {"search": [], "latent": [], "film": []}
    task = FitTask(
        generator=saved.generator, poses=saved.curriculum.poses(),
        options=saved.curriculum.preview_render(saved.step, 32), effort=effort,
        kind="gaussian", rng=torch.Generator().manual_seed(0),
        report=lambda name, _, loss: lowest[name].append(loss),
    )  # fmt: skip
    guess, loss = inversion.fit_photo(task, photo)
    for name in ("latent", "film"):
        assert lowest[name][-1] < 0.95 * lowest[name][0]
    assert loss == lowest["film"][-1]
    assert guess.film.frequencies.device.type == DEVICE


def test_the_fid_of_a_generator_is_that_on_the_cpu(weights):
    real = Gaussian(torch.full((6,), 0.1).double(), torch.eye(6).double())
    found = []
    for device in (CPU, torch.device(DEVICE)):
        saved = checkpoints.load_generator(DEMO, device=device)
        network = fid.inception.pytorch_fid_network(None, device)
        meter = fid.FidMeter(network, real, saved.curriculum, num_images=9)
        found.append(meter.measure(saved.generator, saved.step, Place(device=device), bool))
    assert found[1] == pytest.approx(found[0], rel=1e-3)
