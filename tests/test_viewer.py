"""The viewer without a browser: what is asked for, shown, saved and refused."""

import http.client
import math
import os
import shlex
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image

import checkpoints
import curriculum
import viewer
import viewer_page
import viewer_pictures
import viewer_request
import viewer_saving
import viewing
from checkpoints import Fit
from flags import UsageError
from generators.cameras import Poses, camera_rotations, cast_rays
from meshing import Wanted
from viewer_checkpoints import Checkpoints
from viewer_map import PoseMap
from viewer_pictures import coarse_size, finished_picture, levels
from viewer_request import Eye, Request
from viewer_session import Session, Shared, distance_of, eye_from
from viewer_turns import Turns

POSES = curriculum.build("Tiny", TINY).poses()
EYE = Eye(1.3, 1.1, 12.0)
MANY = 10**6  # points in one call of the field


def source_of(run, **changes):
    return Checkpoints(
        run / "generator.pth", device=torch.device("cpu"), curriculum=None, **changes
    )


def request_of(**changes):
    wanted = {"checkpoint": "generator.pth", "ema": "ema", "eye": EYE, "num_steps": 4}
    return Request(**{**wanted, "image_size": 8, **changes})


class Screen:
    """Remembers what a visitor would see."""

    def __init__(self):
        self.pictures, self.troubles, self.steps = [], [], []
        self.saved = threading.Event()

    def show(self, picture):
        self.pictures.append(picture)

    def complain(self, text):
        self.troubles.append(text)

    def progress(self, text, share):
        self.steps.append((text, share))
        if share is None:
            self.saved.set()


def shared_of(run, output_dir):
    return Shared(
        source=source_of(run),
        turns=Turns(),
        start=request_of(image_size=80),
        usual=EYE,
        fit_eyes={},
        output_dir=output_dir,
        options=["--output_dir", str(output_dir)],
        max_points=MANY,
        saver=ThreadPoolExecutor(1),
    )


@pytest.fixture
def visit(tiny_run, tmp_path):
    """A function that lets a visitor come; with the turns of all."""
    shared = shared_of(tiny_run, tmp_path / "views")

    def come():
        screen = Screen()
        session = Session(shared, screen)
        session.begin()
        return session, screen

    yield come, shared.turns
    shared.saver.shutdown()


def run_out(turns):
    while turns.step():
        pass


# What is asked for


def test_a_page_camera_at_distance_one_is_ours():
    place = camera_rotations(Poses(torch.tensor([1.3]), torch.tensor([1.1])))[0, :, 2]
    eye = eye_from(place.tolist(), (0, 0, 0), 12.0)
    assert eye[:3] == pytest.approx((1.3, 1.1, 12.0), abs=1e-5)
    assert eye.target == (0, 0, 0)


@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
def test_zooming_keeps_the_size_that_the_page_gives_the_target(distance):
    eye = eye_from((distance, 0.0, 0.0), (0.0, 0.0, 0.0), 30.0)
    seen = math.tan(math.radians(eye.fov_degrees) / 2)  # half of what ours sees, at distance 1
    assert seen == pytest.approx(distance * math.tan(math.radians(15)))
    assert distance_of(eye, 30.0) == pytest.approx(distance)


def test_a_camera_that_looks_at_the_origin_has_the_rays_of_training():
    rays, usual = EYE.rays((6, 6)), cast_rays(Poses(*torch.tensor([[1.3], [1.1]])), 6, 12.0)
    for one, other in zip(rays, usual, strict=True):
        torch.testing.assert_close(one, other)
    assert EYE.distance() == pytest.approx(1)


def test_a_shifted_target_shifts_the_camera_and_the_depths(tiny_run):
    saved = source_of(tiny_run).open("generator.pth", "ema").saved
    axis = EYE.placed()[1][0, :, 2]  # towards the camera
    moved = EYE._replace(target=tuple((0.2 * axis).tolist()))
    assert moved.distance() == pytest.approx(1.2)
    usual, found = (
        viewer_request.render_options(saved, request_of(eye=eye), 5) for eye in (EYE, moved)
    )
    assert (usual.near, usual.far) == pytest.approx((0.88, 1.12))
    assert (found.near, found.far) == pytest.approx((1.08, 1.32))


@pytest.mark.parametrize(
    ("place", "target"), [((0, 0, 0), (0, 0, 0)), ((math.nan, 0, 1), (0, 0, 0))]
)
def test_a_camera_nowhere_is_refused(place, target):
    with pytest.raises(UsageError):
        eye_from(place, target, 12.0)


def test_extreme_cameras_are_brought_back():
    eye = eye_from((0.0, 1e9, 0.0), (7.0, -7.0, 0.0), 30.0)
    assert eye.fov_degrees == viewer_request.WIDEST
    assert eye.target == (0.5, -0.5, 0.0)
    assert request_of(eye=eye)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"psi": 1.5}, "psi"),
        ({"psi": math.nan}, "psi"),
        ({"num_steps": 2}, "num_steps"),
        ({"image_size": 5000}, "image_size"),
        ({"show": "everything"}, "show"),
        ({"eye": EYE._replace(pitch=-1.0)}, "pitch"),
        ({"eye": EYE._replace(target=(0.0, 0.0, 9.0))}, "target"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(changes, word):
    with pytest.raises(UsageError, match=f"--{word}"):
        request_of(**changes)


@pytest.mark.parametrize(
    ("aspect", "shape"), [(1.0, (10, 10)), (1.5, (10, 15)), (0.5, (20, 10)), (1.57, (10, 16))]
)
def test_the_shorter_side_has_the_pixels_asked_for(aspect, shape):
    assert request_of(aspect=aspect).shape(10) == shape


# What is shown


def test_quick_pictures_are_as_large_as_the_machine_is_fast():
    budget = viewer_pictures.QUICK_SECONDS
    assert coarse_size(64, budget, 256) == 64
    assert coarse_size(64, 0.9 * budget, 256) == 64
    assert coarse_size(64, 1.1 * budget, 256) == 48
    assert coarse_size(64, 0, 256) == 256
    assert coarse_size(64, 1e9, 256) == 32
    assert coarse_size(64, 1e9, 16) == 16


def test_pictures_double_until_the_finished_one():
    wanted = request_of(image_size=256, num_steps=24)
    assert levels(64, wanted, 12) == [(64, 12), (128, 12), (256, 24)]
    assert levels(48, wanted, 12) == [(48, 12), (96, 12), (192, 12), (256, 24)]
    assert levels(256, wanted, 12) == [(256, 12), (256, 24)]
    assert levels(512, replace(wanted, num_steps=6), 12) == [(256, 6)]


def test_a_picture_is_the_render_of_the_commands(tiny_run):
    source = source_of(tiny_run)
    saved = source.open("generator.pth", "ema").saved
    wanted = request_of(seed=3, psi=0.6, num_steps=8, image_size=9)
    options = replace(saved.curriculum.preview_render(saved.step, 9), num_steps=8)
    film = viewing.objects_of_seeds(saved, [3], psi=0.6)[0].film
    view = viewing.look(saved, film, 1.3, 1.1, options, points_per_chunk=MANY)
    found = finished_picture(source, wanted, max_points=MANY).float()
    torch.testing.assert_close(found, (view.images[0] + 1) * 127.5, atol=0.51, rtol=0)


def test_every_kind_of_picture_is_another(tiny_run):
    source = source_of(tiny_run)
    siren = source.open("generator.pth", "ema").saved.generator.siren
    siren.final_layer.bias.fill_(5)  # nothing is transparent, so that there is a surface
    pictures = [
        finished_picture(source, request_of(show=show, aspect=1.5), max_points=MANY)
        for show in viewer_request.SHOWS
    ]
    assert all(picture.shape == (3, 8, 12) for picture in pictures)
    assert all(
        not torch.equal(one, other)
        for index, one in enumerate(pictures)
        for other in pictures[:index]
    )


def test_mixing_goes_from_one_seed_to_the_other(tiny_run):
    source = source_of(tiny_run)
    opened = source.open("generator.pth", "ema")
    films = [
        source.film(opened, request_of(seed=2, to_seed=5, mix=mix)).frequencies
        for mix in (0.0, 0.5, 1.0)
    ]
    ends = [source.film(opened, request_of(seed=seed)).frequencies for seed in (2, 5)]
    torch.testing.assert_close(films[0], ends[0])
    torch.testing.assert_close(films[1], (ends[0] + ends[1]) / 2)
    torch.testing.assert_close(films[2], ends[1])


def test_pictures_refine_when_nothing_moves(visit):
    come, turns = visit
    _, screen = come()
    run_out(turns)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert sizes == [64, 80]
    assert [picture.is_finished for picture in screen.pictures] == [False, True]


def test_a_move_cancels_refinement_and_never_the_first_picture(visit, monkeypatch):
    monkeypatch.setattr(viewer_pictures, "CPU_PART", 1024)  # many parts
    monkeypatch.setattr(viewer_pictures, "coarse_size", lambda *_: 64)
    come, turns = visit
    session, screen = come()
    for step in range(4000):
        if not turns.step():
            break
        if step % 7 == 0 and len(screen.pictures) < 3:
            angle = 0.001 * step
            session.move((math.cos(angle), 0.3, math.sin(angle)), (0, 0, 0), 1.0)
    sizes = [picture.pixels.shape[1] for picture in screen.pictures]
    assert len(sizes) > 3
    assert sizes == [64] * (len(sizes) - 1) + [80]
    eyes = [picture.request.eye for picture in screen.pictures]
    assert len(set(eyes)) == len(eyes) - 1  # the last was seen twice, quick and finished


def test_each_visitor_has_a_camera_and_a_seed(visit):
    come, turns = visit
    (one, first), (_, second) = come(), come()
    one.fill_in({"seed": "9"})
    one.move((0.0, 0.0, 1.0), (0.0, 0.0, 0.0), 1.0)
    run_out(turns)
    pictures = [screen.pictures[-1].pixels for screen in (first, second)]
    assert not torch.equal(*pictures)
    assert first.pictures[-1].request.seed == 9
    assert second.pictures[-1].request == request_of(image_size=80)


def test_who_has_gone_is_shown_nothing(visit):
    come, turns = visit
    session, screen = come()
    turns.step()
    session.end()
    run_out(turns)
    assert screen.pictures == []


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seed": "three"}, "Seed must be a whole number of at least 0, not 'three'"),
        ({"seed": str(2**64)}, "Seed 18446744073709551616: must be from 0"),
        ({"psi": "nan"}, "Truncation psi must be a number from 0 to 1"),
        ({"image_size": "9999"}, "Pixels 9999: must be from 1 to 1024"),
        ({"checkpoint": "../../etc/passwd"}, "no checkpoint '../../etc/passwd' in this run"),
        ({"ema": "ema3"}, "generator.pth has no ema3 parameters"),
        ({"fit": "/etc/passwd"}, "no fit '/etc/passwd'"),
        ({"num_steps": "1"}, "Samples per ray 1: must be from 3 to 512"),
        ({"show": "<b>"}, "show <b>: choose one of color"),
    ],
)
def test_nonsense_in_a_field_is_said_and_changes_nothing(visit, fields, text):
    come, _ = visit
    session, screen = come()
    before = session.request
    session.fill_in(fields)
    assert text in screen.troubles[-1]
    assert session.request is before
    session.fill_in({"seed": "4"})
    assert screen.troubles[-1] == ""
    assert session.request.seed == 4


# Files


def snapshot(run, folder):
    folder.mkdir()
    for target in ("generator", "ema"):
        (folder / f"{target}.pth").write_bytes((run / "ema2.pth").read_bytes())


def test_the_picker_lists_the_runs_own_checkpoints(tiny_run, tmp_path):
    snapshot(tiny_run, tiny_run / "snapshot_000004")
    snapshot(tiny_run, tiny_run / "snapshot_000006")
    snapshot(tiny_run, tmp_path / "elsewhere")
    (tiny_run / "linked").symlink_to(tmp_path / "elsewhere")
    source = source_of(tiny_run)
    names = ["generator.pth", "snapshot_000006/generator.pth", "snapshot_000004/generator.pth"]
    assert source.names() == names
    assert source.averages(names[0]) == ["ema", "ema2", "none"]
    assert source.averages(names[1]) == ["ema", "none"]
    for name in ("linked/generator.pth", "../elsewhere/generator.pth", "ema.pth"):
        with pytest.raises(UsageError, match="no checkpoint"):
            source.open(name, "none")


def test_pictures_follow_the_files_as_training_writes_them(visit, tiny_run):
    come, turns = visit
    session, screen = come()
    run_out(turns)
    shown = len(screen.pictures)
    session.look_around()
    run_out(turns)
    assert len(screen.pictures) == shown  # nothing new
    content = (tiny_run / "ema2.pth").read_bytes()
    (tiny_run / "draft").write_bytes(content)
    os.replace(tiny_run / "draft", tiny_run / "ema.pth")
    session.look_around()
    run_out(turns)
    assert len(screen.pictures) > shown
    before, after = (screen.pictures[i].pixels for i in (shown - 1, -1))
    assert not torch.equal(before, after)


def test_a_file_that_has_become_unreadable_leaves_the_last_picture(visit, tiny_run):
    come, turns = visit
    session, screen = come()
    run_out(turns)
    whole = (tiny_run / "ema.pth").read_bytes()
    (tiny_run / "ema.pth").write_bytes(whole[: len(whole) // 2])
    session.look_around()
    run_out(turns)
    assert torch.equal(screen.pictures[-1].pixels, screen.pictures[1].pixels)
    assert not session._pictures.is_outdated()  # it is not tried again and again


def test_a_checkpoint_that_never_was_readable_is_said(visit, tiny_run):
    come, turns = visit
    (tiny_run / "snapshot_1").mkdir()
    (tiny_run / "snapshot_1" / "generator.pth").write_text("<html>")
    session, screen = come()
    session.fill_in({"checkpoint": "snapshot_1/generator.pth", "ema": "none"})
    run_out(turns)
    assert "is a web page" in screen.troubles[-1]
    assert screen.pictures == []


def test_a_fit_is_shown_in_place_of_a_seed(tiny_run, tmp_path):
    saved = source_of(tiny_run).open("generator.pth", "ema").saved
    film = saved.generator.mapping(torch.randn(1, 6))
    path = tmp_path / "cat.pth"
    checkpoints.save_fit(path, Fit(film=film, pitch=1.0, yaw=1.2, fov_degrees=11.0), saved)
    source = source_of(tiny_run, fits={"cat": path})
    found = source.film(source.open("generator.pth", "ema"), request_of(fit="cat"))
    assert torch.equal(found.frequencies, film.frequencies)
    with pytest.raises(UsageError, match="another generator"):
        source.film(source.open("generator.pth", "none"), request_of(fit="cat"))


def saved_by(session, screen, what):
    screen.saved.clear()
    session.save(what)
    assert screen.saved.wait(60)
    return screen.steps[-1][0]


def test_a_saved_picture_and_its_command_line_give_the_same_bytes(visit, tmp_path, capsys):
    come, turns = visit
    session, screen = come()
    session.fill_in({"seed": "5", "psi": 0.55, "show": "normals", "to_seed": "6", "mix": 0.3})
    session.move((0.3, 0.5, 0.7), (0.01, 0.0, -0.02), 1.25)
    run_out(turns)
    assert "saved" in saved_by(session, screen, "picture")
    path = tmp_path / "views" / "5_to_6_normals.png"
    shown = screen.pictures[-1].pixels
    saved = path.read_bytes()
    with Image.open(path) as image:
        assert image.size == (100, 80)
        assert np.array_equal(np.asarray(image), shown.permute(1, 2, 0))
    words = shlex.split(session.command_line())
    assert words[:2] == ["python", "viewer.py"]
    path.unlink()
    assert viewer.main(words[2:]) == 0
    assert capsys.readouterr().out.strip() == str(path)
    assert path.read_bytes() == saved


def test_a_video_and_a_mesh_are_saved_with_progress(visit, tmp_path, monkeypatch):
    monkeypatch.setattr(viewer_saving, "VIDEO_FRAMES", 3)
    monkeypatch.setattr(viewer_saving, "MESH_RESOLUTION", 16)
    # Nothing in these random fields is opaque enough for a level to be chosen.
    monkeypatch.setattr(viewer_saving, "Wanted", lambda: Wanted(level=0.5))
    come, _ = visit
    session, screen = come()
    session.fill_in({"image_size": "16"})
    saved_by(session, screen, "video")
    shares = [share for _, share in screen.steps if share is not None]
    assert shares[0] == 0
    assert 0 < max(shares) < 1
    saved_by(session, screen, "mesh")
    assert sorted(path.name for path in (tmp_path / "views").iterdir()) == ["0.glb", "0.mp4"]


def test_one_thing_is_saved_at_a_time_and_nothing_for_who_has_gone(visit, tmp_path, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()

    def slow(source, request, folder, progress, max_points):
        begun.set()
        assert go_on.wait(60)
        progress(0.5)
        folder.mkdir()
        pytest.fail("nobody waits for this")

    monkeypatch.setitem(viewer_saving.SAVERS, "picture", slow)
    come, _ = visit
    session, screen = come()
    session.save("picture")
    assert begun.wait(60)
    session.save("picture")
    assert "being saved already" in screen.troubles[-1]
    session.end()
    go_on.set()
    session._shared.saver.shutdown()
    assert not (tmp_path / "views").exists()


# The command


def test_the_map_knows_the_training_cameras():
    pose_map = PoseMap(POSES)
    middle = Eye(math.pi / 2, math.pi / 2, 12.0)
    assert pose_map.is_familiar(middle)
    assert "as in training" in pose_map.svg(middle)
    behind = middle._replace(yaw=-math.pi / 2)
    assert not pose_map.is_familiar(behind)
    assert "beyond the training cameras" in pose_map.svg(behind)
    assert 'cx="120.0" cy="60.0" r="5"' in pose_map.svg(middle)


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("192.168.0.9", False),
        ("example.org", False),
    ],
)
def test_which_addresses_others_can_reach(host, is_loopback, capsys):
    assert viewer.is_loopback(host) == is_loopback
    viewer._announce(host, 81)
    said = capsys.readouterr()
    assert ("no password" in said.err) != is_loopback
    assert ":81 " in said.out


def test_the_page_is_served_and_nothing_else(tiny_run, tmp_path):
    shared = shared_of(tiny_run, tmp_path)
    server = viewer_page.Server(shared, PoseMap(POSES), "127.0.0.1", 0)
    try:
        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        link.request("GET", "/")
        page = link.getresponse()
        assert page.status == 200
        assert b"<script" in page.read()
        link.close()
        for path in ("/../../../../etc/passwd", "/%2e%2e/%2e%2e/_viser.py", "/etc/passwd"):
            link.request("GET", path)
            assert link.getresponse().status == 404
            link.close()
        assert server._viser.request_share_url() is None
    finally:
        server.stop()


def test_a_port_in_use_is_one_line(tiny_run, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        texts = [tiny_run / "generator.pth", "--port", port, "--output_dir", tmp_path / "x"]
        with pytest.raises(UsageError, match=f"--port {port}: no page can be served there"):
            viewer.main([str(text) for text in texts])
    assert not (tmp_path / "x").exists()


def test_a_missing_library_is_one_line(tiny_run, monkeypatch):
    monkeypatch.setitem(viewer.sys.modules, "viewer_page", None)
    with pytest.raises(UsageError, match="pip install -r requirements-viewer.txt"):
        viewer.main([str(tiny_run / "generator.pth")])
