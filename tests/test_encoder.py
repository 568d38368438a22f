"""The encoder: its basis, its training, its file, and the command that starts from it."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY, save_network
from PIL import Image

import inverse_render
import train_encoder
from checkpoint_io import checkpoints, encoders
from config import curriculum
from generators import encoder_training, guided_fit
from generators.cameras import FAMILIAR, Poses
from generators.encoder import fit_basis
from generators.encoder_training import EncoderOptions, Examples
from generators.inversion import FitOptions, FitTask, Guess, Photo, render_guess
from generators.sampling import sample_latents
from generators.volumetric_rendering import RenderOptions
from rendering import fitting
from system.errors import UsageError

BOUNDED = curriculum.build(
    "Bounded", {**TINY, "scene_radius": 0.1, "density_scale": 200, "discriminator_width": 16}
)


@pytest.fixture
def saved(tmp_path):
    """Save a tiny generator in a bounded scene, whose views change smoothly, and load it."""
    network = BOUNDED.build_generator()
    network.siren.final_layer.bias.data.zero_()
    save_network(tmp_path / "run" / "generator.pth", network, BOUNDED)
    return checkpoints.load_generator(tmp_path / "run" / "generator.pth")


def untrained(saved, size=8):
    encoder = encoders.build(saved, image_size=size, num_components=6)
    fit_basis(encoder, saved.generator, "gaussian", torch.Generator().manual_seed(0))
    encoder.middle.copy_(torch.tensor([math.pi / 2, 12.0]))
    return encoder


POSES = BOUNDED.poses()
AROUND = replace(POSES, kind="uniform", yaw_spread=math.pi)


def examples_of(encoder, saved, count, poses=POSES, seed=5):
    return encoder_training.render_examples(
        encoder, saved.generator, count, poses, BOUNDED.preview_render(0, 8), "gaussian",
        torch.Generator().manual_seed(seed),
    )  # fmt: skip


def test_the_basis_is_that_of_the_latents(saved):
    encoder = untrained(saved)
    z = sample_latents(3000, 6, kind="gaussian", rng=torch.Generator().manual_seed(3))
    with torch.no_grad():
        film = saved.generator.mapping(z)
    coordinates = encoder.coordinates(film)
    torch.testing.assert_close(coordinates.mean(0), torch.zeros(6), atol=0.1, rtol=0)
    torch.testing.assert_close(coordinates.T.cov(), torch.eye(6), atol=0.15, rtol=0)
    torch.testing.assert_close(encoder.coordinates(encoder.film(coordinates)), coordinates,
                               atol=1e-3, rtol=1e-3)  # fmt: skip
    features = torch.cat([film.frequencies, film.phase_shifts], dim=1)
    again = encoder.film(coordinates)
    rest = torch.cat([again.frequencies, again.phase_shifts], dim=1) - features
    assert rest.square().sum() < 0.3 * (features - features.mean(0)).square().sum()


def test_errors_are_zero_at_the_truth_and_ignore_yaw_at_the_pole(saved):
    encoder = untrained(saved)
    truth = examples_of(encoder, saved, 4)

    class Oracle:
        middle, components, spread = encoder.middle, encoder.components, encoder.spread

        def __call__(self, images):
            return truth.coordinates, cameras

    cameras = truth.cameras.clone()
    losses = encoder_training.encoder_losses(Oracle(), truth.images, truth)
    assert all(float(loss) == 0 for loss in losses.values())
    cameras[:, 1:3] *= -1  # turned by half
    pole = replace(truth, cameras=truth.cameras.clone())
    pole.cameras[:, 0] = cameras[:, 0] = -math.pi / 2
    assert float(encoder_training.encoder_losses(Oracle(), None, pole)["pose"]) < 1e-9
    assert float(encoder_training.encoder_losses(Oracle(), None, truth)["pose"]) > 1


@pytest.mark.parametrize("background", ["white", "black", "last_sample"])
def test_disturbances_keep_the_object_and_change_the_background(background):
    options = RenderOptions(image_size=8, fov_degrees=12, near=0.9, far=1.1, num_steps=4,
                            background=background)  # fmt: skip
    own = {"white": 1.0, "black": -1.0, "last_sample": 0.0}[background]
    images, opacities = torch.full((200, 3, 8, 8), own), torch.zeros(200, 8, 8)
    images[:, :, 2:6, 2:6], opacities[:, 2:6, 2:6] = 0.3, 1.0
    given = Examples(images, opacities, torch.zeros(200, 6), torch.zeros(200, 4))
    found = encoder_training.disturbed(given, options, torch.Generator().manual_seed(0))
    assert found.min() >= -1
    assert found.max() <= 1
    assert (found[:, :, 3:5, 3:5].mean((1, 2, 3)) - 0.3).abs().max() < 0.3
    corner = (found[:, :, 0, 0] - own).abs().mean(1)
    changed = (corner > 0.35).float().mean()
    assert changed == 0 if background == "last_sample" else 0.1 < changed < 0.4


def test_training_learns_pose_and_object(saved):
    torch.manual_seed(0)
    encoder = untrained(saved, 16)
    poses = replace(BOUNDED.poses(), yaw_spread=1.5)
    test = examples_of(encoder, saved, 200, poses, seed=9)
    reports = []
    before = checkpoints.fingerprint(saved.generator)
    encoder_training.train_encoder(
        encoder, saved.generator, poses, BOUNDED.preview_render(0, 16),
        EncoderOptions(steps=150, renders_per_step=16, batch_size=32, memory=2048,
                       learning_rate=3e-3),
        kind="gaussian", rng=torch.Generator().manual_seed(1),
        report=lambda step, losses: reports.append((step, losses)),
    )  # fmt: skip
    with torch.no_grad():
        losses = encoder_training.encoder_losses(encoder, test.images, test)
    assert losses["object"] < 0.8  # a constant guess has 1
    assert losses["pose"] < 0.6 * test.cameras[:, :3].var(0).sum()
    assert [step for step, _ in reports] == list(range(1, 151))
    assert checkpoints.fingerprint(saved.generator) == before


def task_of(saved, poses, options):
    return FitTask(
        generator=saved.generator, poses=poses, options=options, effort=FitOptions(),
        kind="gaussian", rng=torch.Generator(), report=lambda *_: None,
    )  # fmt: skip


def test_a_guess_is_tried_in_each_quarter_of_a_turn_and_the_best_is_first(saved):
    encoder = untrained(saved).eval()
    truth = examples_of(encoder, saved, 1)
    options = BOUNDED.preview_render(0, 16)
    with torch.no_grad():
        _, guess = encoder.guess(truth.images)
        turned = replace(guess, poses=guess.poses._replace(yaw=guess.poses.yaw + math.pi - 0.3))
        image, _ = render_guess(saved.generator, turned, options, 16)
    encoder.guess = lambda images: (truth.coordinates, guess)
    photo = Photo(image[0], torch.ones(16, 16))
    _, found = guided_fit.first_guesses(task_of(saved, AROUND, options), encoder, photo)
    assert float(found.poses.yaw[0]) == pytest.approx(float(turned.poses.yaw))
    quarters = ((found.poses.yaw - guess.poses.yaw) / (math.pi / 2)).round()
    assert sorted(quarters.tolist()) == [0, 1, 2, 3]


def test_sides_that_no_expected_camera_shows_are_not_tried(saved, monkeypatch):
    encoder = untrained(saved).eval()
    options = BOUNDED.preview_render(0, 16)
    guess = Guess(
        saved.generator.mapping(torch.zeros(1, 6)), Poses(torch.tensor([1.6]), torch.tensor([1.8])),
        torch.tensor([12.0]),
    )  # fmt: skip
    encoder.guess = lambda images: (torch.zeros(1, 6), guess)
    photo = Photo(torch.zeros(3, 16, 16), torch.ones(16, 16))
    front = replace(POSES, kind="gaussian", yaw_mean=math.pi / 2, yaw_spread=0.3)
    task = task_of(saved, front, options)
    coordinates, found = guided_fit.first_guesses(task, encoder, photo)
    assert len(coordinates) == len(found.poses.yaw) < guided_fit.QUARTERS
    off = torch.remainder(found.poses.yaw - math.pi / 2 + math.pi, math.tau) - math.pi
    assert off.abs().max() < 4 * 0.3 + FAMILIAR
    strange = replace(front, yaw_mean=-math.pi / 2)  # no turn leads there
    monkeypatch.setattr(guided_fit, "TURNS", (0.0,))
    monkeypatch.setattr(guided_fit, "QUARTERS", 1)
    task = task_of(saved, strange, options)
    coordinates, found = guided_fit.first_guesses(task, encoder, photo)
    assert (len(coordinates), float(found.poses.yaw)) == (1, pytest.approx(1.8))


def fit_at_64_px(saved):
    """Fit a black photo from the guess of an untrained encoder; return the best guess."""
    guess, _ = guided_fit.fit_from_guess(
        task_of(saved, AROUND, BOUNDED.preview_render(0, 64)),
        untrained(saved).eval().requires_grad_(False),
        Photo(torch.zeros(3, 64, 64), torch.ones(64, 64)),
    )
    return guess


def test_a_fit_ends_at_full_size_with_twice_the_samples(saved, monkeypatch):
    taken = []

    def descend(task, photos, cameras, film, parameters, **_):
        taken.append((photos[0].image.shape[-1], task.options.num_steps))
        return torch.zeros(len(cameras.yaw)), cameras.guess(film()[0])

    monkeypatch.setattr(guided_fit, "descend", descend)
    fit_at_64_px(saved)
    sizes, samples = zip(*taken, strict=True)
    assert sizes == (16, 16, 32, 64)
    usual = BOUNDED.preview_render(0, 64).num_steps
    assert samples == (usual, usual, usual, 2 * usual)


@pytest.mark.parametrize(("second", "counts"), [(2.9, [4, 2, 2, 1]), (3.1, [4, 1, 1, 1])])
def test_two_starts_go_on_while_both_may_be_right(second, counts, saved, monkeypatch):
    taken = []

    def descend(task, photos, cameras, film, *_, **__):
        taken.append(len(cameras.yaw))
        losses = torch.tensor([second, 1.0, 9.0, 9.0][: taken[-1]])
        return losses, cameras.guess(film()[0])

    monkeypatch.setattr(guided_fit, "descend", descend)
    guess = fit_at_64_px(saved)
    assert taken == counts
    assert len(guess.fov_degrees) == 1


def trained(saved, *words):
    command = [str(saved.path.parent), "--steps", "3", "--device", "cpu", *words]
    assert train_encoder.main(command) == 0
    return saved.path.parent / "encoder.pth"


def photo_in(folder):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "car.png")
    return folder / "car.png"


def invert(saved, folder, *words):
    command = [saved.path, photo_in(folder), "--output_dir", folder / "fit", "--image_size", "8",
               "--num_frames", "2", "--device", "cpu", "--fit_size", "8", *words]  # fmt: skip
    return inverse_render.main([str(word) for word in command])


def test_the_command_starts_from_the_encoder_beside_the_generator(
    saved, tmp_path, capsys, monkeypatch
):
    encoder = encoders.load(trained(saved), saved)
    photo = Photo(torch.rand(3, 8, 8), torch.ones(8, 8))
    monkeypatch.setattr(fitting.joint_inversion, "fit_photos", None)  # no random search
    invert(saved, tmp_path)
    refined = checkpoints.load_fit(tmp_path / "fit" / "fit.pth", saved)
    assert "tuned" not in capsys.readouterr().out
    invert(saved, tmp_path, "--instant", "--tune", "2")
    assert re.search(r"[\d.]+ dB, tuned [\d.]+ dB at 8 px", capsys.readouterr().out)
    instant = checkpoints.load_fit(tmp_path / "fit" / "fit.pth", saved)
    with Image.open(tmp_path / "fit" / "fit.png") as picture:
        assert picture.size == (40, 8)  # photo, fit, tuned fit, difference, other side
    assert not torch.equal(instant.film.frequencies, refined.film.frequencies)
    assert instant.film.weight_changes is not None
    assert refined.film.weight_changes is None
    _, guess = encoder.guess(photo.image[None])
    assert torch.isfinite(guess.film.frequencies).all()


def test_an_instant_fit_has_a_video_only_on_request(saved, tmp_path):
    trained(saved)
    command = [saved.path, photo_in(tmp_path), "--output_dir", tmp_path / "fit", "--instant",
               "--image_size", "8", "--device", "cpu", "--fit_size", "8"]  # fmt: skip
    inverse_render.main(list(map(str, command)))
    names = {"fit.pth", "fit.png", "views.png"}
    assert {path.name for path in (tmp_path / "fit").iterdir()} >= names
    assert not list((tmp_path / "fit").glob("*.mp4"))
    inverse_render.main([*map(str, command), "--num_frames", "2"])
    assert (tmp_path / "fit" / "reconstructed.mp4").is_file()


def test_candidates_ask_for_a_random_search(saved, tmp_path, monkeypatch):
    trained(saved)
    monkeypatch.setattr(fitting.guided_fit, "fit_from_guess", None)  # a call would raise
    invert(saved, tmp_path, "--candidates", "4", "--starts", "1", "--latent_steps", "1",
           "--film_steps", "1")  # fmt: skip
    assert (tmp_path / "fit" / "fit.pth").is_file()


@pytest.mark.parametrize("words", [[], ["--candidates", "4"], ["--same_object"]])
def test_instant_needs_an_encoder(saved, tmp_path, words):
    if words:
        trained(saved)
    with pytest.raises(UsageError, match="--instant: t(here|akes)"):
        invert(saved, tmp_path, "--instant", *words)
    assert not (tmp_path / "fit").exists()


def test_a_folder_in_the_encoder_s_place_is_told_before_the_training(saved, monkeypatch):
    (saved.path.parent / "encoder.pth").mkdir()
    monkeypatch.setattr(encoder_training, "train_encoder", None)
    with pytest.raises(UsageError, match=r"encoder.pth: is a folder"):
        trained(saved)


def test_the_same_command_writes_the_same_encoder(saved):
    first = trained(saved, "--seed", "4").read_bytes()
    assert trained(saved, "--seed", "4", "--replace").read_bytes() == first
    assert trained(saved, "--seed", "5", "--replace").read_bytes() != first


def test_an_encoder_is_not_written_over_unless_that_is_asked_for(saved, monkeypatch):
    first = trained(saved).read_bytes()
    monkeypatch.setattr(encoder_training, "train_encoder", None)  # refused before the training
    with pytest.raises(UsageError, match=r"encoder.pth: exists; --replace"):
        trained(saved, "--seed", "5")
    assert (saved.path.parent / "encoder.pth").read_bytes() == first


def test_the_discriminator_is_the_start(saved):
    critic = BOUNDED.build_discriminator()
    save_network(saved.path.parent / "discriminator.pth", critic, BOUNDED, "discriminator")
    encoder = train_encoder._first(saved, saved.path)
    for name, value in critic.layers.state_dict().items():
        assert torch.equal(encoder.trunk.layers.state_dict()[name], value)


def test_an_encoder_of_another_generator_is_one_line(saved, tmp_path):
    trained(saved)
    other = BOUNDED.build_generator()
    save_network(saved.path, other, BOUNDED)
    with pytest.raises(UsageError, match="trained for another generator") as error:
        invert(replace(saved, generator=other), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"kind": "fit"}, "holds a fit"),
        ({"image_size": 12}, "images of 12 px"),
        ({"image_size": None}, "NoneType as 'image_size'"),
        ({"num_components": 5}, "of shape"),
        ({"num_components": 10**9}, "has 1000000000 components"),
        ({"state": {}}, "lacks"),
        ({"state": None}, "no parameters"),
        ({"mean": torch.tensor(math.nan)}, "not finite"),
    ],
)
def test_a_damaged_encoder_is_one_line(saved, changes, text):
    path = trained(saved)
    content = checkpoints.read(path, "encoder")
    if "mean" in changes:
        state = content["state"]
        changes = {"state": {**state, "mean": state["mean"] * changes["mean"]}}
    checkpoints.save(path, "encoder", {**content, **changes})
    with pytest.raises(UsageError) as error:
        encoders.load(path, saved)
    assert text in str(error.value)
    assert "\n" not in str(error.value)
