"""Fitting a photo: the loss, its descent, and the command."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import inverse_render
from checkpoint_io import checkpoints
from config import curriculum
from generators import inversion, joint_inversion
from generators.cameras import Poses, cast_rays, sample_poses
from generators.inversion import FitOptions, FitTask, Photo, photo_losses
from generators.sampling import sample_latents
from image_io.decoding import read_picture
from rendering import fitting, photos
from system.errors import UsageError

QUICK = FitOptions(num_candidates=64, num_starts=2, latent_steps=25, film_steps=40, search_size=8)


@pytest.fixture
def saved(tiny_run):
    return checkpoints.load_generator(tiny_run / "generator.pth")


def render_of(saved, seed, size=16):
    rng = torch.Generator().manual_seed(seed)
    film = saved.generator.mapping(sample_latents(1, 6, kind="gaussian", rng=rng))
    poses = sample_poses(saved.curriculum.poses(), 1, rng=rng)
    options = saved.curriculum.preview_render(0, size)
    with torch.no_grad():
        return saved.generator.render(film, poses, options).images[0], options


def task_of(saved, options, effort, report):
    return FitTask(
        generator=saved.generator, poses=saved.curriculum.poses(), options=options, effort=effort,
        kind="gaussian", rng=torch.Generator().manual_seed(0), report=report,
    )  # fmt: skip


def fitted(saved, image, options, fit=QUICK, *, by=inversion.fit_photo, guessed_pose=None):
    """Return what a fit, or the search before it, finds, and its reports."""
    reports = []
    task = task_of(saved, options, fit, lambda *report: reports.append(report))
    return *by(task, Photo(image, torch.ones(image.shape[1:])), guessed_pose), reports


def test_differences_count_on_every_level_where_they_can_be_seen():
    image, opaque = torch.zeros(3, 32, 32), torch.ones(1, 32, 32)
    photo = Photo(image, torch.rand(32, 32))
    constant = photo_losses(image[None] + 0.5, opaque, photo)
    assert float(constant) == pytest.approx(0.25)
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)
    even = Photo(image, torch.ones(32, 32))
    checkered = photo_losses(image[None] + 0.5 * signs, opaque, even)
    assert float(checkered) == pytest.approx(0.25 / 3)  # gone at 16 and 8 pixels


def test_pixels_without_weight_do_not_count():
    weight = torch.zeros(32, 32)
    weight[:, :16] = 1
    image = torch.zeros(1, 3, 32, 32)
    image[..., 16:] = 1
    photo = Photo(torch.zeros(3, 32, 32), weight)
    assert float(photo_losses(image, torch.ones(1, 32, 32), photo)) == 0


def test_alpha_is_compared_with_the_opacity():
    image, everywhere = torch.zeros(3, 8, 8), torch.ones(8, 8)
    photo = Photo(image, everywhere, alpha=everywhere)
    loss = photo_losses(image[None], torch.zeros(1, 8, 8), photo)
    assert float(loss) == pytest.approx(inversion.OPACITY_WEIGHT / 4)  # mean over color and alpha


def test_several_angles_of_view_are_several_cameras():
    poses = Poses(torch.tensor([1.2, 1.5]), torch.tensor([0.3, 2.0]))
    both = cast_rays(poses, 5, torch.tensor([12.0, 30.0]))
    for index, fov in enumerate((12.0, 30.0)):
        one = cast_rays(Poses(*(angle[index : index + 1] for angle in poses)), 5, fov)
        torch.testing.assert_close(both.directions[index], one.directions[0])
        torch.testing.assert_close(both.origins[index], one.origins[0])


def test_a_render_of_the_generator_is_found_again(saved):
    # In a bounded scene, whose opacity changes smoothly with the object.
    bounded = {**TINY, "scene_radius": 0.1, "density_scale": 200}
    saved = replace(saved, curriculum=curriculum.build("Bounded", bounded))
    saved.generator.siren.density_scale = 200.0
    image, options = render_of(saved, 3)
    guess, loss, reports = fitted(saved, image, options)
    lowest = {name: best for name, _, best in reports}
    assert lowest["latent"] < lowest["search"]
    assert loss == lowest["film"]
    shown, _ = inversion.render_guess(saved.generator, guess, options, 16)
    error = ((shown[0] - image) / 2).square().mean()
    assert -10 * math.log10(float(error)) > 25
    assert len(guess.film) == len(guess.poses.yaw) == len(guess.fov_degrees) == 1


def test_several_photos_of_one_object_have_a_camera_each(saved):
    bounded = {**TINY, "scene_radius": 0.1, "density_scale": 200, "h_stddev": 0.6}
    saved = replace(saved, curriculum=curriculum.build("Bounded", bounded))
    saved.generator.siren.density_scale = 200.0
    rng = torch.Generator().manual_seed(3)
    film = saved.generator.mapping(sample_latents(1, 6, kind="gaussian", rng=rng))
    poses = Poses(torch.tensor([1.5, 1.6, 1.4]), torch.tensor([0.9, 1.6, 2.2]))
    options, three = saved.curriculum.preview_render(0, 16), torch.zeros(3, dtype=torch.long)
    with torch.no_grad():
        images = saved.generator.render(film[three], poses, options).images
    steps = []
    task = task_of(
        saved, options, replace(QUICK, num_starts=4), lambda *report: steps.append(report)
    )
    photos = [Photo(image, torch.ones(16, 16)) for image in images]
    guess, loss = joint_inversion.fit_photos(task, photos, [None] * 3)
    assert [count for name, count, _ in steps if name == "search"] == [*range(32, 193, 32)]
    assert all(
        (part == part[:1]).all() for part in (guess.film.frequencies, guess.film.phase_shifts)
    )
    shown, opacities = inversion.render_guess(saved.generator, guess, options, 16)
    each = [photo_losses(*seen, Photo(image, torch.ones(16, 16))) for *seen, image in
            zip(shown.split(1), opacities.split(1), images, strict=True)]  # fmt: skip
    assert loss == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert (guess.poses.yaw - poses.yaw).abs().max() < 0.2
    errors = ((shown - images) / 2).square().mean((1, 2, 3))
    assert float(-10 * errors.max().log10()) > 25


def test_a_known_angle_of_view_stays(saved):
    image, options = render_of(saved, 4)
    fixed = replace(QUICK, num_candidates=16, latent_steps=5, film_steps=5, fits_fov=False)
    guess, _, _ = fitted(saved, image, options, fixed)
    assert float(guess.fov_degrees) == pytest.approx(options.fov_degrees)


def test_half_of_the_candidates_are_near_the_guessed_camera(saved):
    image, options = render_of(saved, 5)
    believed = Poses(torch.tensor([0.4]), torch.tensor([-2.0]))  # far from where cameras stand
    fit = replace(QUICK, num_starts=64)
    _, poses, _ = fitted(saved, image, options, fit, by=inversion.search, guessed_pose=believed)
    near = (poses.yaw + 2.0).abs() < 0.6
    assert int(near.sum()) == 32
    assert ((poses.pitch[near] - 0.4).abs() < 0.6).all()


def open_photo(path, size, **how):
    opened = photos.open_photo(read_picture(path), str(path), size, crop="center", **how)
    assert (opened.square, opened.ground, opened.fault) == (None, None, "")
    return opened.photo


def save(path, pixels):
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def test_an_alpha_channel_puts_the_object_on_the_background(tmp_path):
    pixels = np.zeros((4, 4, 4))
    pixels[:, :2] = (255, 0, 0, 255)  # the left half is red, the right one transparent
    path = save(tmp_path / "photo.png", pixels)
    photo = open_photo(path, 4, background=1.0)
    assert torch.equal(photo.image[:, 0, 0], torch.tensor([1.0, -1.0, -1.0]))
    assert (photo.image[:, :, 3] == 1).all()
    assert (photo.weight == 1).all()
    assert photo.alpha is not None
    assert photo.alpha[:, 0].eq(1).all()
    assert photo.alpha[:, 3].eq(0).all()
    behind = open_photo(path, 4, background=None)
    assert behind.alpha is None
    assert behind.weight[:, 3].eq(0).all()


def test_a_mask_takes_the_place_of_the_alpha_channel(tmp_path):
    photo = save(tmp_path / "photo.png", np.full((4, 6, 3), 200))
    mask = save(tmp_path / "mask.png", np.full((4, 6), 255))
    whole = open_photo(photo, 4, mask=mask, background=1.0)
    assert whole.alpha is None
    half = np.zeros((4, 6))
    half[:, :3] = 255
    masked = open_photo(photo, 4, mask=save(tmp_path / "half.png", half), background=None)
    assert masked.weight[:, 0].eq(1).all()
    assert masked.weight[:, 3].eq(0).all()


def mask_of(values, mode="L"):
    """Return a 4 x 6 mask with the first value on the left half and the second on the right."""
    image = Image.new(mode, (6, 4), values[1])
    image.paste(values[0], (0, 0, 3, 4))
    return image


MASKS = {
    "black and white": mask_of((255, 0)),
    "one bit": mask_of((1, 0), "1"),
    "0 and 1": mask_of((1, 0)),
    "color": mask_of(((0, 128, 0), (0, 0, 0)), "RGB"),
    "color palette": mask_of(((128, 0, 0), (0, 0, 0)), "RGB").quantize(4),
    "cut-out": mask_of(((0, 0, 0, 255), (0, 0, 0, 0)), "RGBA"),
    "white cut-out": mask_of((255, 0), "L").convert("LA"),
    "16 bits": Image.fromarray(np.asarray(mask_of((255, 0))).astype(np.uint16) * 257),
    "16 bits, 0 and 1": Image.fromarray(np.asarray(mask_of((1, 0))).astype(np.uint16)),
    "16 bits, 0 and 255": Image.fromarray(np.asarray(mask_of((255, 0))).astype(np.uint16)),
}


@pytest.mark.parametrize("kind", MASKS)
def test_kinds_of_masks_are_understood(tmp_path, kind):
    MASKS[kind].save(tmp_path / "mask.png")
    found = np.asarray(photos.read_mask(tmp_path / "mask.png"))
    assert np.array_equal(found, np.repeat([[255, 0]], 3, 1).repeat(4, 0))


def test_a_soft_mask_keeps_its_greys(tmp_path):
    greys = np.linspace(0, 255, 24).astype(np.uint8).reshape(4, 6)
    save(tmp_path / "mask.png", greys)
    assert np.array_equal(np.asarray(photos.read_mask(tmp_path / "mask.png")), greys)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        (mask_of((7, 7)), "values 7 only, of 255"),
        (mask_of((2, 1)), "values 1 to 2, of 255"),
        (mask_of(((200, 0, 0), (0, 0, 200)), "RGB"), "holds 2 colors"),
    ],
)
def test_pictures_that_are_no_masks_are_refused_with_the_reason(tmp_path, image, text):
    image.save(tmp_path / "mask.png")
    with pytest.raises(UsageError, match=text):
        photos.read_mask(tmp_path / "mask.png")


@pytest.mark.parametrize("fault", ["missing", "empty", "no picture", "other size", "black mask"])
def test_a_bad_photo_is_one_line(tmp_path, fault):
    photo, mask = save(tmp_path / "photo.png", np.full((4, 6, 3), 200)), None
    if fault == "missing":
        photo = tmp_path / "foto.png"
    elif fault in ("empty", "no picture"):
        photo.write_bytes(b"" if fault == "empty" else b"<html>")
    else:
        shape = (3, 3) if fault == "other size" else (4, 6)
        mask = save(tmp_path / "mask.png", np.zeros(shape))
    with pytest.raises(UsageError):
        open_photo(photo, 4, mask=mask, background=1.0)


def test_a_photo_of_one_pixel_is_no_photo(tmp_path):
    photo = save(tmp_path / "photo.png", np.zeros((1, 5, 3)))
    with pytest.raises(UsageError, match=r"photo.png: is 5 x 1 pixels; .* at least 4"):
        open_photo(photo, 4, background=1.0)


def test_the_command_writes_a_fit_that_the_others_take(
    tiny_run, saved, tmp_path, capsys, monkeypatch
):
    image, _ = render_of(saved, 6)
    pixels = ((image + 1) * 127.5).round().permute(1, 2, 0).numpy()
    photo = save(tmp_path / "car.png", pixels)
    command = [str(tiny_run / "generator.pth"), str(photo), "--candidates", "32", "--starts", "2",
               "--latent_steps", "4", "--film_steps", "4", "--image_size", "12",
               "--fit_size", "16", "--device", "cpu"]  # fmt: skip
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert inverse_render.main(command) == 0
    assert not (tmp_path / "car_fit").exists()  # a folder of photos stays one
    folder = tmp_path / "here" / "car_fit"
    names = ["fit.pth", "fit.png", "views.png", "reconstructed.mp4"]
    assert sorted(path.name for path in folder.glob("[!.]*")) == sorted(names)
    said = capsys.readouterr().out
    assert "dB at 16 px" in said
    words = re.search(r"--pitch (\S+) --yaw (\S+) --fov ([\d.]+)", said).groups()
    with Image.open(folder / "views.png") as views:
        assert views.size == (60, 16)  # a bar under each view
    with Image.open(folder / "fit.png") as comparison:
        assert comparison.size == (64, 16)  # photo, fit, difference, other side
    fit = checkpoints.load_fit(folder / "fit.pth", saved)
    assert [float(word) for word in words] == pytest.approx(fit.camera[:3], abs=0.01)
    assert fit.film.frequencies.shape == (1, saved.generator.siren.num_features)
    before = [(folder / name).read_bytes() for name in names]
    assert inverse_render.main(command) == 0
    assert [(folder / name).read_bytes() for name in names] == before


def test_a_fit_no_better_than_a_single_color_is_called_poor(
    tiny_run, tmp_path, capsys, monkeypatch
):
    image = torch.linspace(-1, 1, 64).view(1, 8, 8).expand(3, 8, 8)
    photo = Photo(image, torch.ones(8, 8))
    variance = float((image / 2).var(correction=0))
    assert fitting.flat_psnr(photo) == pytest.approx(-10 * math.log10(variance), abs=1e-4)
    halves = torch.cat([torch.zeros(8, 4), torch.ones(8, 4)], dim=1)
    assert fitting.flat_psnr(Photo(2 * halves.expand(3, 8, 8) - 1, halves)) == 100
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    path = save(tmp_path / "noise.png", noise)
    monkeypatch.chdir(tmp_path)
    inverse_render.main([str(tiny_run / "generator.pth"), str(path), "--candidates", "4",
                         "--starts", "1", "--latent_steps", "1", "--film_steps", "1",
                         "--image_size", "8", "--num_frames", "2", "--device", "cpu"])  # fmt: skip
    assert "a poor fit" in capsys.readouterr().out
