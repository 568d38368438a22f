"""Fits of prepared photos, of several photos of one object, and of many photos; what is poor."""

import csv
import json
import math
import random
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import inverse_render
from checkpoint_io import checkpoints
from generators.cameras import PoseDistribution, Poses, camera_origins, cast_rays, familiar_poses
from generators.generators import View
from generators.inversion import FitOptions, Photo
from generators.trajectories import Camera, SceneObject
from geometry.visibility import seen_points
from image_io import placing, png, preparing
from image_io.placing import NotFound, Square
from rendering import fit_batch, fit_files, fitting, photos, viewing
from rendering.fitting import Fit, Fitter
from rendering.photos import Opened, Preparation
from siren.film import Film
from system.errors import UsageError

QUICK = ["--candidates", "32", "--starts", "1", "--latent_steps", "2", "--film_steps", "2"]
QUICK += ["--image_size", "12", "--fit_size", "16", "--num_frames", "2", "--device", "cpu"]
GREY = (120, 150, 130)


def disk(ground=GREY, size=(90, 60), at=(55, 25), radius=14):
    """Return a photo of a two-colored disk; ground None is transparent."""
    photo = Image.new("RGBA", size, (*ground, 255) if ground else (0, 0, 0, 0))
    x, y = at
    box = (x - radius, y - radius, x + radius, y + radius)
    draw = ImageDraw.Draw(photo)
    draw.pieslice(box, 30, 210, (200, 30, 60, 255))
    draw.pieslice(box, 210, 390, (20, 40, 220, 255))
    return photo if ground is None else photo.convert("RGB")


def turned_square(photo):
    """Find a turned square, as one around a face."""
    return photo, [Square(x=55, y=25, side=12), Square(x=52, y=27, side=40, angle=20)]


OBJECT = Preparation(kind="object", find=preparing.finder("object"))
FACE = Preparation(kind="face", find=turned_square)


@pytest.mark.parametrize(
    ("photo", "how", "background"),
    [
        (disk(), OBJECT, 1.0),
        (disk(), OBJECT, -1.0),
        (disk(None), OBJECT, 1.0),
        (disk(), FACE, None),
    ],
)
def test_a_render_goes_back_to_where_the_photo_was_cut(photo, how, background):
    opened = photos.open_photo(photo, "a.png", 64, crop=how, background=background)
    shown = opened.photo
    alpha = torch.ones(64, 64) if shown.alpha is None else shown.alpha
    found = photos.put_back(opened, shown.image, alpha, background)
    assert found.size == photo.size
    assert found.mode == photo.mode
    difference = np.abs(np.asarray(found, float) - np.asarray(photo, float))
    assert difference.mean() < 4
    assert np.percentile(difference, 90) < 30  # edges are resampled twice
    gone = photos.put_back(opened, shown.image, torch.zeros(64, 64), background)
    if background is not None:  # the object is taken out of the ground
        assert len(np.unique(np.asarray(gone.convert("RGBA")).reshape(-1, 4), axis=0)) <= 2
    elsewhere = np.hypot(*(np.mgrid[:60, :90] - np.array([26, 53])[:, None, None])) > 35
    assert difference[elsewhere].max() == 0


def test_the_largest_of_several_is_taken_and_what_is_poor_is_named():
    opened = photos.open_photo(disk(), "a.png", 64, crop=FACE, background=None)
    assert opened.square.side == 40
    assert opened.note == "2 faces; takes the largest"
    assert opened.fault == ""
    tiny = photos.open_photo(disk(), "a.png", 96, crop=FACE, background=None)
    assert tiny.fault == "small: 40 pixels for 96"


def test_what_cannot_be_prepared_is_one_line():
    def nothing(photo):
        raise NotFound("no face found")

    how = Preparation(kind="face", find=nothing)
    with pytest.raises(UsageError, match="^a.png: no face found$"):
        photos.open_photo(disk(), "a.png", 16, crop=how, background=None)
    with pytest.raises(UsageError, match="^a.png: no object on the ground$"):
        photos.open_photo(disk(radius=0), "a.png", 16, crop=OBJECT, background=None)


def test_placed_is_the_inverse_of_cut():
    y, x = np.mgrid[:60, :90]
    photo = Image.fromarray(np.stack([2 * x, 3 * y, 0 * x, 0 * x + 255], -1).astype(np.uint8))
    square = Square(x=44.0, y=31.0, side=30.0, angle=-35.0)
    layer = placing.placed(placing.cut(photo, square, 80), square, photo.size)
    covered = np.asarray(layer)[..., 3] == 255
    assert covered.sum() == pytest.approx(30 * 30, rel=0.15)
    error = np.abs(np.asarray(layer, float) - np.asarray(photo, float))[covered]
    assert error.max() < 3


# What the photo has seen

RADIUS = 0.2


def ball(pitch, yaw, size=128, fov=30.0):
    """Return points and normals (H, W, 3) and depths (H, W) of a ball, in closed form."""
    rays = cast_rays(Poses(torch.tensor([pitch]), torch.tensor([yaw])), size, fov)
    along = -(rays.origins * rays.directions).sum(-1)
    root = along**2 - (rays.origins**2).sum(-1) + RADIUS**2
    depths = (along - root.sqrt())[0].view(size, size)  # NaN beside the ball
    points = rays.origins[0] + depths.view(-1, 1) * rays.directions[0]
    return points.view(size, size, 3), (points / RADIUS).view(size, size, 3), depths


@pytest.mark.parametrize("turn", [0.0, 0.5, 1.5, 3.0])
def test_a_camera_sees_the_part_of_a_ball_that_faces_it(turn):
    points, normals, _ = ball(1.3, 0.7 + turn)
    photo, depths = Poses(torch.tensor([1.3]), torch.tensor([0.7])), ball(1.3, 0.7)[2]
    seen = seen_points(points, normals, photo, depths, fov_degrees=30.0, slack=0.012)
    wanted = (normals * (camera_origins(photo) - points)).sum(-1) > 0
    is_ball = points[..., 0].isfinite()
    share, expected = ((part & is_ball).sum() / is_ball.sum() for part in (seen, wanted))
    assert float(expected) - 0.04 <= float(share) <= float(expected)  # less along the outline
    assert not seen[~is_ball].any()
    hidden = seen_points(points, normals, photo, depths - 0.1, fov_degrees=30.0, slack=0.01)
    assert hidden.sum() <= 0.15 * seen.sum()  # something stands before it; its rim is behind that
    beside = seen_points(points, normals, photo, depths, fov_degrees=1.0, slack=0.01)
    assert beside.sum() < seen.sum() or not seen.any()


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_a_bar_is_as_long_as_its_share(share):
    strip = png.bar(40, share, "")
    is_full = (strip == torch.tensor(png.BAR_FULL)[:, None, None]).all(0)
    assert is_full.float().mean() == pytest.approx(share)
    assert png.bar(256, share, "seen").unique().numel() > strip.unique().numel()


# Poor fits


@pytest.fixture
def saved(tiny_run):
    return checkpoints.load_generator(tiny_run / "generator.pth")


def fit_of(saved, *, better=1.0, film=1.0, **changes):
    """Return a fit whose picture errs by 1 / better of the photo's deviation."""
    pixels = torch.linspace(-1, 1, 64).view(1, 8, 8).expand(3, 8, 8)
    photo = Photo(pixels, torch.ones(8, 8))
    mean = viewing.mean_film(saved)
    far = Film(mean.frequencies + film - 1, mean.phase_shifts)
    shot = SceneObject("a", far, viewing.usual_camera(saved)._replace(**changes))
    view = View((pixels * (1 - 1 / better))[None], *torch.ones(2, 1, 8, 8))
    opened = Opened(name="a", photo=photo)
    return Fit(opened=[opened], photos=[photo], shots=[shot], views=[view], loss=0.0)


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({"better": 2.1}, []),
        ({"better": 1.9}, ["only 5.6 dB better than a picture of one color"]),
        ({"better": 0.5}, ["6.0 dB worse than a picture of one color"]),
        ({"better": 9, "fov_degrees": 20.0}, ["60% of its size in training"]),
        ({"better": 9, "fov_degrees": 7.0}, ["172% of its size in training"]),
        ({"better": 9, "yaw": 0.0}, ["pose is beyond the training cameras"]),
        ({"better": 9, "film": 1e4}, ["outside of what was learned"]),
        ({"yaw": 0.0}, ["only 0.0 dB", "pose is beyond"]),
    ],
)
def test_a_poor_fit_says_why(saved, changes, reasons):
    fitter = Fitter(saved=saved, options=saved.curriculum.preview_render(0, 8), effort=FitOptions())
    found = fitting.poor_because(fitter, fit_of(saved, **changes))
    assert len(found) == len(reasons)
    for line, part in zip(found, reasons, strict=True):
        assert part in line
    blurred = fit_of(saved, better=9)
    blurred = replace(blurred, opened=[replace(blurred.opened[0], fault="blurred: 0.7")])
    assert fitting.poor_because(fitter, blurred) == ["blurred: 0.7"]


# The command


def run(tiny_run, *words):
    assert inverse_render.main([str(tiny_run / "generator.pth"), *map(str, words), *QUICK]) == 0


def test_the_other_side_is_one_that_training_has_seen():
    around = PoseDistribution(
        kind="uniform", yaw_mean=0.0, yaw_spread=math.pi, pitch_mean=1.5, pitch_spread=0.0
    )
    camera = Camera(around.pitch_mean, 0.4, 12.0)
    known = familiar_poses(around)
    assert fit_files.other_side(camera, known).yaw == pytest.approx(0.4 + math.pi)
    front = replace(around, kind="gaussian", yaw_spread=0.3)
    side = fit_files.other_side(camera, familiar_poses(front))
    assert -4 * 0.3 < side.yaw < -0.3  # past the middle, on the other half of the face
    assert side.fov_degrees == 12


def test_a_prepared_photo_is_fitted_and_put_back(tiny_run, tmp_path, capsys):
    disk().save(tmp_path / "disk.png")
    run(tiny_run, tmp_path / "disk.png", "--prepare", "object", "--output_dir", tmp_path / "fit")
    (found,) = json.loads((tmp_path / "fit" / "fit.json").read_text())["photos"]
    assert found["size"] == [90, 60]
    assert (found["square"]["x"], found["square"]["y"]) == pytest.approx((55, 25), abs=1)
    assert found["square"]["side"] == pytest.approx(29 / 0.8, abs=2)
    with Image.open(tmp_path / "fit" / "in_photo.png") as picture:
        assert picture.size == (90, 60)
        outside = np.asarray(picture)[:, :30]
    assert (outside == GREY).all()
    with Image.open(tmp_path / "fit" / "views.png") as views:
        assert views.size == (60, 16)  # a bar of 4 pixels
    assert "in_photo.png fit.json" in capsys.readouterr().out


def test_photos_of_one_object_are_fitted_together(tiny_run, saved, tmp_path):
    for name, at in (("one", (40, 25)), ("two", (50, 30))):
        disk((255, 255, 255), at=at).save(tmp_path / f"{name}.png")
    names = [tmp_path / "one.png", tmp_path / "two.png"]
    run(tiny_run, *names, "--same_object", "--output_dir", tmp_path / "fit")
    first, second = json.loads((tmp_path / "fit" / "fit.json").read_text())["photos"]
    fit = checkpoints.load_fit(tmp_path / "fit" / "fit.pth", saved)
    assert fit.camera[:3] == (first["pitch"], first["yaw"], first["fov"])
    assert second["yaw"] != first["yaw"]
    with Image.open(tmp_path / "fit" / "fit.png") as picture:
        assert picture.size == (64, 32)  # a row for each photo


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a.png", "b.png"], "2 photos: say --same_object"),
        (["a.png", "b.png", "--same_object", "--each"], "not allowed with"),
        (["a.png", "b.png", "--same_object", "--mask", "a.png"], "--mask: is for one photo"),
        (["a.png", "--prepare", "cat"], "'cat' is none of face, object"),
        (["a.png", "--prepare", "object", "--crop", "none"], "not allowed with"),
        (["a.png", "--cascade", "a.xml"], "--cascade: is for --prepare face"),
        (["a.png", "--share", "0.5"], "--share: is for --prepare object"),
        (["a.png", "--share", "0"], "--share: must be a number from 0.1"),
        ([".", "--same_object"], "is a folder; --each fits each"),
        (["nowhere", "--each"], "no folder, glob or .zip"),
        (["a.png", "nowhere.png", "--each"], "nowhere.png: is no file"),
    ],
)
def test_what_does_not_go_together_is_one_line(tiny_run, tmp_path, monkeypatch, words, text):
    monkeypatch.chdir(tmp_path)
    disk().save("a.png")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError) as error:
        inverse_render.main([str(tiny_run / "generator.pth"), *words])
    assert text in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write photos into mine/ and return the names of those that are fitted; two are at most."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    for name, radius in (("c.png", 9), ("sub/a.jpg", 10), ("sub/a.png", 14), ("sub/b.png", 12)):
        disk(radius=radius).save(f"mine/{name}")
    fitted, fit = [], Fitter.fit

    def counted(self, opened, report):
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append(opened[0].name)
        return fit(self, opened, report)

    monkeypatch.setattr(Fitter, "fit", counted)
    return fitted


EACH = ["mine", "--each", "--prepare", "object"]


def test_a_stopped_batch_goes_on(tiny_run, tmp_path, mine):
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run, *EACH)
    assert mine == ["c.png", "sub/a.jpg"]
    folder = tmp_path / "mine_fits"
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/fit.json")}
    assert {path.parent.name for path in done} == {"c", "sub_a"}
    mine.clear()
    run(tiny_run, *EACH)
    assert mine == ["sub/a.png", "sub/b.png"]
    assert {path: path.stat().st_mtime_ns for path in done} == done
    mine.clear()
    run(tiny_run, *EACH)
    assert mine == []
    (folder / "sub_b" / "views.png").write_bytes(b"half")
    run(tiny_run, *EACH)
    assert mine == ["sub/b.png"]
    mine.clear()
    with pytest.raises(KeyboardInterrupt):  # another seed is another fit
        run(tiny_run, *EACH, "--seed", "1")
    assert mine == ["c.png", "sub/a.jpg"]


@pytest.mark.slow
def test_a_batch_that_is_killed_goes_on(tiny_run, tmp_path, counted):
    """Kills at random moments, of which many are while files are written."""
    (tmp_path / "mine").mkdir()
    for number in range(6):
        disk(radius=8 + number).save(tmp_path / "mine" / f"{number}.png")
    words = [str(tiny_run / "generator.pth"), str(tmp_path / "mine"), *EACH[1:], *QUICK]
    command = [sys.executable, inverse_render.__file__, *words, "--output_dir"]
    subprocess.run([*command, tmp_path / "whole"], check=True, capture_output=True)
    out, rng, kills = tmp_path / "out", random.Random(0), 0

    def files(folder=out):
        return {path: path.read_bytes() for path in folder.glob("*/[!.]*")}

    while kills < 6:
        before = files()
        done = {path.parent for path in before if path.name == "fit.json"}
        with subprocess.Popen([*command, out], stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and files() == before:
                pass
            time.sleep(rng.uniform(0, 0.15))
            process.kill()
        kills += 1
        after = files()
        assert {path: after[path] for path in before if path.parent in done} == {
            path: before[path] for path in before if path.parent in done
        }
        if process.returncode == 0:
            break
    subprocess.run([*command, out], check=True, capture_output=True)
    whole = {
        path.relative_to(tmp_path / "whole"): content
        for path, content in files(tmp_path / "whole").items()
        if path.name != "fit.json"  # it has seconds
    }
    assert len(whole) == 6 * 4
    assert {path: (out / path).read_bytes() for path in whole} == whole
    counted(f"a batch of 6 photos killed {kills} times")


def test_a_batch_tells_of_each_photo(tiny_run, tmp_path, mine):
    folder = tmp_path / "mine_fits"
    (tmp_path / "mine" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "mine" / "empty.png").touch()
    disk(radius=0).save("mine/sub/a.png")
    (tmp_path / "mine" / "sub" / "b.png").unlink()
    run(tiny_run, *EACH)
    rows = list(csv.DictReader((folder / "fits.csv").read_text().splitlines()))
    assert {row["photo"]: row["folder"] for row in rows} == {
        "c.png": "c", "sub/a.jpg": "sub_a", "sub/a.png": "", "broken.png": "", "empty.png": "",
    }  # fmt: skip
    reasons = {row["photo"]: row["poor"] for row in rows}
    assert reasons["broken.png"].startswith("unreadable: ")
    assert reasons["sub/a.png"] == "sub/a.png: no object on the ground"
    for row in rows:
        if row["folder"]:
            assert float(row["psnr"]) > 0
            assert math.isfinite(float(row["yaw"]))
            assert checkpoints.read(folder / row["folder"] / "fit.pth", "fit")
    with Image.open(folder / "fits.png") as sheet:
        assert sheet.height > 2 * fit_batch.SHEET_SIDE
    with pytest.raises(UsageError, match="no photo can be fitted"):
        run(tiny_run, "mine/sub/a.png", "--each", "--prepare", "object")


def test_a_zip_is_fitted_like_its_folder(tiny_run, tmp_path, mine):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.write("mine/c.png", "../../c.png")
    run(tiny_run, "photos.zip", "--each")
    mine.clear()
    run(tiny_run, "mine/c.png", "mine/sub/a.jpg", "--each", "--output_dir", "files")
    fits = [Path("photos_fits", "c", "fit.pth"), Path("files", "mine_c", "fit.pth")]
    assert fits[0].read_bytes() == fits[1].read_bytes()


def test_names_of_folders_are_safe_and_differ():
    names = ["a.png", "A.jpg", "../../etc/x.png", "/", "…", "ü b.png", "x" * 300 + ".png"]
    found = list(fit_batch.folder_names(names))
    assert found[:6] == ["a", "A_2", "etc_x", "photo", "photo_2", "ü_b"]
    assert len(found[6]) == fit_batch.LONGEST_NAME


@pytest.mark.parametrize("turns", [-3, 0, 2])
def test_the_camera_of_a_fit_is_told_within_half_a_turn(turns):
    yaw = fitting._within_a_turn(0.3 + turns * math.tau, math.pi / 2)
    assert yaw == pytest.approx(0.3)
    assert fitting._within_a_turn(-2.0, math.pi / 2) == pytest.approx(math.tau - 2.0)
