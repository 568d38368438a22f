"""The viewer without a browser: requests, pictures, and the command."""

import http.client
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from one_view import look
from viewer_visits import EYE, POSES, request_of, shared_of, source_of

import viewer
from generators.cameras import Poses, camera_rotations, cast_rays
from generators.trajectories import Camera
from rendering import viewing
from siren.fused import cpu as fused_cpu
from system.errors import UsageError
from web_viewer import checkpoints, pictures
from web_viewer.page import PoseMap, Server
from web_viewer.pictures import coarse_size, finished_picture, levels
from web_viewer.request import (
    MAX_ASPECT,
    SHOWS,
    WIDEST,
    camera_from,
    distance_of,
    render_options,
)

DEMO = Path(__file__).parent.parent / "assets" / "demo"

# Requests


def test_a_page_camera_at_distance_one_is_ours():
    place = camera_rotations(Poses(torch.tensor([1.3]), torch.tensor([1.1])))[0, :, 2]
    camera = camera_from(place.tolist(), (0, 0, 0), 12.0)
    assert camera[:3] == pytest.approx((1.3, 1.1, 12.0), abs=1e-5)
    assert camera.target == (0, 0, 0)


@pytest.mark.parametrize("distance", [0.3, 1.0, 2.5])
def test_zooming_keeps_the_size_that_the_page_gives_the_target(distance):
    camera = camera_from((distance, 0.0, 0.0), (0.0, 0.0, 0.0), 30.0)
    seen = math.tan(math.radians(camera.fov_degrees) / 2)  # half of what ours sees, at distance 1
    assert seen == pytest.approx(distance * math.tan(math.radians(15)))
    assert distance_of(camera, 30.0) == pytest.approx(distance)


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
    usual, found = (render_options(saved, request_of(camera=camera), 5) for camera in (EYE, moved))
    assert (usual.near, usual.far) == pytest.approx((0.88, 1.12))
    assert (found.near, found.far) == pytest.approx((1.08, 1.32))


@pytest.mark.parametrize(
    ("place", "target"), [((0, 0, 0), (0, 0, 0)), ((math.nan, 0, 1), (0, 0, 0))]
)
def test_a_camera_nowhere_is_refused(place, target):
    with pytest.raises(UsageError):
        camera_from(place, target, 12.0)


def test_extreme_cameras_are_brought_back():
    camera = camera_from((0.0, 1e9, 0.0), (7.0, -7.0, 0.0), 30.0)
    assert camera.fov_degrees == WIDEST
    assert camera.target == (0.5, -0.5, 0.0)
    words = ["--pitch", camera.pitch, "--yaw", camera.yaw, "--fov", camera.fov_degrees]
    words += ["--target", *camera.target, "--aspect", MAX_ASPECT]
    viewer.build_parser().parse_args(["generator.pth", *map(str, words)])  # within the limits


@pytest.mark.parametrize(
    ("aspect", "shape"), [(1.0, (10, 10)), (1.5, (10, 15)), (0.5, (20, 10)), (1.57, (10, 16))]
)
def test_the_shorter_side_has_the_pixels_asked_for(aspect, shape):
    assert request_of(aspect=aspect).shape(10) == shape


# Pictures


def test_quick_pictures_are_as_large_as_the_machine_is_fast():
    budget = pictures.QUICK_SECONDS
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
    view = look(saved, film, 1.3, 1.1, options)
    found = finished_picture(source, wanted).float()
    torch.testing.assert_close(found, (view.images[0] + 1) * 127.5, atol=0.51, rtol=0)


def test_every_kind_of_picture_is_another(tiny_run):
    source = source_of(tiny_run)
    siren = source.open("generator.pth", "ema").saved.generator.siren
    siren.final_layer.bias.fill_(5)  # nothing is transparent, so that there is a surface
    found = [finished_picture(source, request_of(show=show, aspect=1.5)) for show in SHOWS]
    assert all(picture.shape == (3, 8, 12) for picture in found)
    assert all(
        not torch.equal(one, other) for index, one in enumerate(found) for other in found[:index]
    )


def test_normals_of_the_included_generator_have_no_steps():
    source = source_of(DEMO)
    above = Camera(1.1, 2.2, 30.0)

    def normals(num_steps):
        wanted = request_of(
            show="normals", camera=above, num_steps=num_steps, image_size=64, psi=0.7
        )
        return finished_picture(source, wanted).float()

    found, converged = normals(14), normals(100)
    on_the_car = converged.sum(0) > 0
    off = (found - converged).abs().mean(0)[on_the_car]
    assert off.mean() < 1.5  # of 255; 0.7, and 3.9 with as many samples as colors


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


# The command


def test_the_map_knows_the_training_cameras():
    pose_map = PoseMap(POSES)
    middle = Camera(math.pi / 2, math.pi / 2, 12.0)
    assert pose_map.is_familiar(middle)
    assert "as in training" in pose_map.svg(middle)
    behind = middle._replace(yaw=-math.pi / 2)
    assert not pose_map.is_familiar(behind)
    assert "beyond the training cameras" in pose_map.svg(behind)
    assert 'cx="120.0" cy="60.0" r="5"' in pose_map.svg(middle)


def test_the_page_is_served_and_nothing_else(tiny_run, tmp_path):
    shared = shared_of(tiny_run, tmp_path)
    server = Server(shared, PoseMap(POSES), "127.0.0.1", 0)
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


def test_a_missing_library_is_one_line(tiny_run, monkeypatch):
    monkeypatch.setitem(viewer.sys.modules, "viser", None)
    monkeypatch.delitem(viewer.sys.modules, "web_viewer.page", raising=False)
    monkeypatch.delattr("web_viewer.page", raising=False)
    with pytest.raises(UsageError, match="pip install -r requirements.txt"):
        viewer.main([str(tiny_run / "generator.pth")])


def test_the_precision_of_the_command_is_that_of_every_checkpoint(tiny_run, monkeypatch):
    monkeypatch.setattr(fused_cpu, "WIDE", 1)  # else a tiny field is not rounded
    monkeypatch.setitem(viewing.FAST_DTYPES, "cpu", torch.bfloat16)
    rough = checkpoints.Checkpoints(
        tiny_run / "generator.pth",
        device=torch.device("cpu"),
        curriculum=None,
        precision="fast",
    )
    request = request_of(aspect=1.5)
    exact = finished_picture(source_of(tiny_run), request)
    assert rough.open("generator.pth", "ema").saved.generator.field_dtype == torch.bfloat16
    assert not torch.equal(finished_picture(rough, request), exact)
