"""The three render commands on a tiny generator, run as on the command line."""

import math
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from one_view import look
from PIL import Image

import curriculums
import render_multiview_images
import render_video
import render_video_interpolation
from checkpoint_io import checkpoints
from generators.trajectories import TRAJECTORIES, Camera, SceneObject
from image_io import png
from rendering import filming, viewing
from system.errors import UsageError

SMALL = ("--image_size", "10", "--ray_step_multiplier", "1", "--device", "cpu")
COMMON = ["--batch_size", "--curriculum", "--curriculum_file", "--depth_map", "--device", "--ema",
          "--fit", "--image_size", "--lock_view_dependence", "--max_batch_size", "--output_dir",
          "--precision", "--psi", "--ray_step_multiplier", "--seeds"]  # fmt: skip
OF_VIDEOS = ["--format", "--fps", "--num_frames", "--trajectory"]


@pytest.fixture
def command(tiny_run, tmp_path):
    """Return a function that runs a command on the tiny generator and returns its output folder."""

    def run(module, *texts, folder="out"):
        words = [tiny_run / "generator.pth", *SMALL, "--output_dir", tmp_path / folder, *texts]
        assert module.main([str(word) for word in words]) == 0
        return tmp_path / folder

    return run


def picture(path):
    with Image.open(path) as image:
        return np.array(image)


def frames_of(folder):
    return [picture(path).astype(float) for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (render_multiview_images, {*COMMON, "--yaws", "--pitches"} - {"--batch_size"}),
        (render_video, {*COMMON, *OF_VIDEOS}),
        (render_video_interpolation, {*COMMON, *OF_VIDEOS}),
    ],
)
def test_flags_are_those_that_people_know(module, expected):
    actions = module.build_parser()._actions
    known = {text for action in actions for text in action.option_strings}
    assert known == {*expected, "-h", "--help"}


def test_a_grid_has_a_column_for_each_yaw_and_rows_for_pitches_and_depths(command):
    folder = command(render_multiview_images, "--seeds", "3", "--pitches", "0", "0.2",
                     "--yaws", "-0.5", "0", "0.5", "--depth_map")  # fmt: skip
    assert {path.name for path in folder.iterdir()} == {"grid_3.png", "sheet.png", ".pigan_outputs"}
    whole = picture(folder / "grid_3.png")
    assert whole.shape == (40, 30, 3)
    alone = picture(command(render_multiview_images, "--seeds", "3", "--pitches", "0.2",
                            "--yaws", "0.5", folder="alone") / "grid_3.png")  # fmt: skip
    assert np.array_equal(whole[20:30, 20:], alone)


def test_a_seed_is_the_same_whatever_stands_beside_it(command):
    one = command(render_multiview_images, "--seeds", "2", "0")
    other = command(render_multiview_images, "--seeds", "0-3", folder="other")
    for name in ("grid_0.png", "grid_2.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "grid_0.png").read_bytes() != (one / "grid_2.png").read_bytes()


def test_pictures_are_the_generators_without_a_stretch(command, tiny_run):
    shown = picture(command(render_multiview_images, "--seeds", "1", "--yaws", "0.25")
                    / "grid_1.png")  # fmt: skip
    saved = checkpoints.load_generator(tiny_run / "ema.pth")
    film = viewing.objects_of_seeds(saved, [1], psi=0.7)[0].film
    options = saved.curriculum.preview_render(0, 10)
    pitch, yaw = saved.curriculum.poses().center()
    view = look(saved, film, pitch, yaw + 0.25, options, points_per_chunk=1000)
    expected = png.to_uint8(view.images)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown.astype(int) - expected).max() <= 1


def test_the_sheet_holds_all_seeds(command):
    folder = command(render_multiview_images, "--seeds", "0-2", "--yaws", "-0.5", "0.5")
    sheet, step = picture(folder / "sheet.png"), 10 + png.GAP
    top = 2 * png.GAP + png.FONT_SIZE
    assert sheet.shape[0] == top + 3 * step
    left = sheet.shape[1] - 2 * step
    assert left > 2 * png.GAP
    for row in range(3):
        grid = picture(folder / f"grid_{row}.png")
        for column in range(2):
            y, x = top + row * step, left + column * step
            own = grid[:, 10 * column : 10 * column + 10]
            assert np.array_equal(sheet[y : y + 10, x : x + 10], own)
    labels = sheet[top:, : left - png.GAP]
    assert (labels == 0).any()


def test_long_labels_are_cut_and_large_pictures_shrunk():
    pictures = torch.zeros(1, 3, 200, 200, dtype=torch.uint8) + 77
    small = render_multiview_images._shrunk(pictures)
    assert small.shape[-1] == render_multiview_images.SHEET_SIZE
    assert (small == 77).all()
    sheet = png.contact_sheet(small, ["x" * 500], ["yaw 0"])
    assert sheet.shape[2] < 500


def test_mp4_has_as_many_frames_as_asked_for(command):
    folder = command(render_video, "--seeds", "0", "5", "--num_frames", "4", "--fps", "7",
                     "--depth_map")  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["0.mp4", "5.mp4"]
    with av.open(str(folder / "5.mp4")) as file:
        stream = file.streams.video[0]
        assert (stream.average_rate, stream.width, stream.height) == (7, 20, 10)
        assert len(list(file.decode(stream))) == 4


def test_a_video_begins_again_without_a_jump(command):
    frames = frames_of(command(render_video, "--seeds", "0", "--trajectory", "orbit",
                               "--format", "frames", "--num_frames", "24") / "0")  # fmt: skip
    steps = [np.abs(frames[i] - frames[i - 1]).mean() for i in range(len(frames))]
    assert steps[0] > 0  # the last frame does not repeat the first
    assert steps[0] <= max(steps[1:])


def test_a_static_camera_gives_identical_frames(command, tmp_path):
    way = tmp_path / "still.csv"
    way.write_text("pitch,yaw\n" + "1.4,1.7\n" * 4)
    texts = ["--seeds", "0", "--trajectory", way, "--depth_map"]
    frames = frames_of(command(render_video, *texts, "--format", "frames") / "0")
    assert len(frames) == 4
    assert all(np.array_equal(frame, frames[0]) for frame in frames)
    with av.open(str(command(render_video, *texts, folder="mp4") / "0.mp4")) as file:
        played = [frame.to_ndarray(format="rgb24").astype(int) for frame in file.decode(video=0)]
    assert max(np.abs(frame - played[0]).max() for frame in played) <= 2


def test_frames_at_once_are_the_same_frames(command):
    texts = ["--seeds", "0", "--num_frames", "5", "--format", "frames"]
    one = frames_of(command(render_video, *texts) / "0")
    three = frames_of(command(render_video, *texts, "--batch_size", "3", folder="three") / "0")
    assert max(np.abs(a - b).max() for a, b in zip(one, three, strict=True)) <= 1


def test_the_memory_ceiling_does_not_change_the_pictures(command):
    texts = ["--seeds", "0", "--yaws", "0"]
    whole = picture(command(render_multiview_images, *texts) / "grid_0.png").astype(int)
    parts = picture(command(render_multiview_images, *texts, "--max_batch_size", "40",
                            folder="parts") / "grid_0.png")  # fmt: skip
    assert np.abs(whole - parts).max() <= 1


def test_locked_views_differ(command):
    texts = ["--seeds", "0", "--yaws", "0.5"]
    free = picture(command(render_multiview_images, *texts) / "grid_0.png")
    locked = picture(command(render_multiview_images, *texts, "--lock_view_dependence",
                             folder="locked") / "grid_0.png")  # fmt: skip
    assert not np.array_equal(free, locked)


def test_interpolation_passes_all_objects_and_returns(tiny_run):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    objects = viewing.objects_of_seeds(saved, [4, 7, 9], psi=0.7)
    way = [Camera(1.0, i, 12.0) for i in range(5)]
    shots = render_video_interpolation.morph(objects, [way] * 3)
    assert len(shots) == 15
    assert [shot.camera for shot in shots] == way * 3
    phases = torch.cat([shot.film.phase_shifts for shot in shots])
    for index, shown in enumerate(objects):
        assert torch.equal(phases[5 * index], shown.film.phase_shifts[0])
    steps = (phases.roll(-1, 0) - phases).norm(dim=1).view(3, 5)
    torch.testing.assert_close(steps, steps[:, :1].expand(3, 5))  # constant, the last one too


def test_interpolation_writes_one_video(command):
    folder = command(render_video_interpolation, "--seeds", "0", "1", "2", "--num_frames", "3")
    assert [path.name for path in folder.iterdir()] == ["interp.mp4"]
    with av.open(str(folder / "interp.mp4")) as file:
        assert len(list(file.decode(video=0))) == 9


def save_fit(path, tiny_run, yaw=2.0):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    film = viewing.objects_of_seeds(saved, [8], psi=1.0)[0].film
    fit = SceneObject("cat", film, Camera(1.3, yaw, 15.0))
    path.parent.mkdir(exist_ok=True)
    checkpoints.save_fit(path, fit, saved)
    return path


def test_a_fit_is_seen_from_its_own_camera(command, tiny_run, tmp_path):
    fit = save_fit(tmp_path / "car_fit" / "fit.pth", tiny_run)
    folder = command(render_multiview_images, "--fit", fit, "--yaws", "0")
    shown = picture(folder / "grid_car_fit.png").astype(int)
    video = command(render_video, "--fit", fit, "--trajectory", "around", "--format", "frames",
                    "--num_frames", "2")  # fmt: skip
    assert np.abs(shown - picture(video / "car_fit" / "0000.png")).max() <= 1
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    shot = checkpoints.load_fit(fit, saved)
    options = saved.curriculum.preview_render(0, 10)
    (view,) = filming.views(saved, [shot], options)
    expected = png.to_uint8(view.images)[0].permute(1, 2, 0).numpy()
    assert np.abs(shown - expected).max() <= 1


def test_two_fits_of_one_name_are_refused(command, tiny_run, tmp_path):
    one = save_fit(tmp_path / "a" / "car.pth", tiny_run)
    other = save_fit(tmp_path / "b" / "car.pth", tiny_run)
    with pytest.raises(UsageError, match="another fit is called car too"):
        command(render_video, "--fit", one, other)
    assert not (tmp_path / "out").exists()


def test_more_frames_than_the_file_has_are_refused(command, tmp_path):
    way = tmp_path / "way.csv"
    way.write_text("pitch,yaw\n1.4,1.7\n1.4,1.8\n")
    with pytest.raises(UsageError, match="has 2; leave the flag out"):
        command(render_video, "--trajectory", way, "--num_frames", "3")


def test_a_zoom_beyond_half_a_turn_is_refused():
    args = render_video.build_parser().parse_args(["generator.pth", "--trajectory", "front"])
    with pytest.raises(UsageError, match="would reach 180 degrees"):
        filming.cameras(args, TRAJECTORIES, [Camera(1.0, 1.0, 170.0)])


def test_the_usual_camera_of_a_seed_is_the_middle_of_the_curriculum(tiny_run):
    saved = checkpoints.load_generator(tiny_run / "generator.pth")
    (shown,) = viewing.objects_of_seeds(saved, [0], psi=0.7)
    assert shown.camera[:3] == pytest.approx((math.pi / 2, math.pi / 2, 12.0))


@pytest.mark.parametrize(
    ("module", "num_views", "texts"),
    [
        (render_multiview_images, 4, ["--yaws", "0", "0.5", "--pitches", "0", "--depth_map"]),
        (render_video, 6, ["--num_frames", "3", "--batch_size", "2"]),
        (render_video_interpolation, 6, ["--num_frames", "3"]),
    ],
)
def test_the_bar_counts_all_rays(command, capsys, module, num_views, texts):
    command(module, "--seeds", "0", "1", "--max_batch_size", "120", *texts)
    last = capsys.readouterr().err.split("\r")[-1]
    assert "100%" in last
    assert f"{num_views * 100}/{num_views * 100} " in last


@pytest.mark.parametrize(("name", "way"), [("CARLA", "orbit"), ("CelebA", "front")])
def test_without_a_trajectory_the_camera_stays_where_training_looked_from(name, way):
    saved = SimpleNamespace(curriculum=curriculums.load(name))
    assert filming.usual_trajectory(saved) == way


def test_the_paths_are_printed(command, capsys):
    folder = command(render_multiview_images, "--seeds", "0", "--yaws", "0")
    names = ["grid_0.png", "sheet.png"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    folder = command(render_video, "--seeds", "0", "1", "--num_frames", "1")
    assert capsys.readouterr().out.split() == [str(folder / f"{seed}.mp4") for seed in (0, 1)]
    folder = command(render_video_interpolation, "--seeds", "0", "1", "--num_frames", "1")
    assert capsys.readouterr().out.split() == [str(folder / "interp.mp4")]


def test_an_interrupted_command_leaves_no_empty_folder(command, tmp_path, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(filming, "frames", interrupted)
    for module in (render_video, render_video_interpolation):
        with pytest.raises(KeyboardInterrupt):
            command(module, "--seeds", "0", "1", folder="new/below")
        assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "full" / "vids").mkdir(parents=True)
    (tmp_path / "full" / "vids" / "a").write_text("a")
    for folder in ("old", "full/vids"):
        with pytest.raises(KeyboardInterrupt):
            command(render_video, "--seeds", "0", folder=folder)
        assert (tmp_path / folder).is_dir()


def test_an_average_that_was_asked_for_must_be_there(command, tiny_run, tmp_path):
    (tiny_run / "ema2.pth").unlink()
    with pytest.raises(UsageError, match="has no ema2.pth beside it; in that folder are ema.pth, "
                       "generator.pth"):  # fmt: skip
        command(render_multiview_images, "--ema", "ema2")
    (tiny_run / "ema.pth").unlink()
    command(render_multiview_images, "--seeds", "0", "--yaws", "0")
