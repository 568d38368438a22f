"""Camera conventions and distributions of poses."""

import math

import pytest
import torch

from generators.cameras import (
    PoseDistribution,
    Poses,
    camera_origins,
    camera_rotations,
    cast_rays,
    rays_from,
    sample_poses,
)

COUNT = 40_000


def poses(pitch, yaw):
    return Poses(*(torch.tensor([angle], dtype=torch.float64) for angle in (pitch, yaw)))


def distribution(kind, **changes):
    numbers = {"yaw_mean": 1.5, "yaw_spread": 0.3, "pitch_mean": 1.4, "pitch_spread": 0.15}
    return PoseDistribution(kind=kind, **{**numbers, **changes})


def draw(kind, **changes):
    return sample_poses(distribution(kind, **changes), COUNT, rng=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("pitch", "yaw", "place"),
    [
        (math.pi / 2, 0.0, [1.0, 0, 0]),
        (math.pi / 2, math.pi / 2, [0.0, 0, 1]),
        (1e-5, 0.3, [0.0, 1, 0]),
    ],
)
def test_yaw_turns_from_x_to_z_and_pitch_is_measured_from_y(pitch, yaw, place):
    found = camera_origins(poses(pitch, yaw))[0]
    torch.testing.assert_close(found, torch.tensor(place).double(), atol=2e-5, rtol=0)


@pytest.mark.parametrize(("pitch", "yaw"), [(1.2, 0.4), (0.01, 2.0), (3.1, -7.0)])
def test_rotations_are_orthonormal_with_determinant_one(pitch, yaw):
    rotation = camera_rotations(poses(pitch, yaw))[0]
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(rotation.T @ rotation, identity, atol=1e-12, rtol=0)
    assert torch.linalg.det(rotation).item() == pytest.approx(1)


def test_at_yaw_half_pi_the_image_shows_x_to_the_right_and_y_up():
    rotation = camera_rotations(poses(math.pi / 2, math.pi / 2))[0]
    torch.testing.assert_close(rotation, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_center_ray_hits_the_origin_at_depth_one():
    rays = cast_rays(poses(1.1, 0.7), 5, 30.0)
    hit = (rays.origins + rays.directions)[0, 12]
    torch.testing.assert_close(hit, torch.zeros(3, dtype=torch.float64), atol=1e-12, rtol=0)
    lengths = rays.directions.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_pixels_run_from_the_top_left_and_the_edges_span_the_field_of_view():
    directions = cast_rays(poses(math.pi / 2, math.pi / 2), 3, 30.0).directions[0]
    top_left, left, right = directions[0], directions[3], directions[5]
    assert top_left[0] < 0 < top_left[1]
    angle = torch.rad2deg(torch.arccos((left * right).sum()))
    assert angle.item() == pytest.approx(30)


def test_a_yaw_shift_rotates_the_rays_about_y():
    turn = 0.8
    before, after = cast_rays(poses(1.0, 0.2), 4, 20.0), cast_rays(poses(1.0, 0.2 + turn), 4, 20.0)
    cos, sin = math.cos(turn), math.sin(turn)
    rotation = torch.tensor([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]], dtype=torch.float64)
    torch.testing.assert_close(before.directions @ rotation.T, after.directions)
    torch.testing.assert_close(before.origins @ rotation.T, after.origins)


def test_a_longer_side_sees_more_with_the_same_square_pixels():
    origin, rotation = torch.zeros(1, 3).double(), torch.eye(3).double()[None]
    square = rays_from(origin, rotation, (5, 5), 30.0).directions[0].view(5, 5, 3)
    wide = rays_from(origin, rotation, (5, 9), 30.0).directions[0].view(5, 9, 3)
    tall = rays_from(origin, rotation, (9, 5), 30.0).directions[0].view(9, 5, 3)
    torch.testing.assert_close(wide[:, 2:7], square)
    torch.testing.assert_close(tall[2:7], square)
    half_width = (wide[2, 8, 0] / -wide[2, 8, 2]).item()
    assert half_width == pytest.approx(2 * math.tan(math.radians(15)))  # eight pixels, not four


def test_rays_leave_any_place_in_any_direction():
    turn = camera_rotations(poses(1.1, 0.7))
    place = torch.tensor([[0.3, -2.0, 5.0]], dtype=torch.float64)
    free, usual = rays_from(place, turn, (4, 4), 20.0), cast_rays(poses(1.1, 0.7), 4, 20.0)
    torch.testing.assert_close(free.directions, usual.directions)
    torch.testing.assert_close(free.origins, place[:, None].expand(1, 16, 3))


def test_uniform_spreads_are_half_widths():
    pitch, yaw = draw("uniform")
    assert yaw.min().item() == pytest.approx(1.2, abs=0.001)
    assert yaw.max().item() == pytest.approx(1.8, abs=0.001)
    assert pitch.std().item() == pytest.approx(0.15 / math.sqrt(3), rel=0.02)


def test_truncated_gaussian_is_cut_at_two_deviations_and_normal_inside():
    _, yaw = draw("truncated_gaussian")
    offsets = (yaw - 1.5) / 0.3
    assert (offsets.abs() > 2 + 1e-5).sum() <= 3  # where none of four candidates is inside
    inside = (offsets.abs() < 1).float().mean().item()
    assert inside == pytest.approx(math.erf(1 / 2**0.5) / math.erf(2 / 2**0.5), abs=0.01)


def test_truncated_gaussian_takes_the_first_of_four_inside_as_published():
    count = 500  # of 500 first candidates about 23 are outside
    first, rng = (torch.Generator().manual_seed(3) for _ in range(2))
    found = sample_poses(distribution("truncated_gaussian"), count, rng=first)
    for angle, mean, spread in ((found.yaw, 1.5, 0.3), (found.pitch, 1.4, 0.15)):
        drawn = torch.empty(count, 1, 4).normal_(generator=rng)[:, 0].tolist()
        wanted = [next(number for number in four if -2 < number < 2) for four in drawn]
        assert any(four[0] != number for four, number in zip(drawn, wanted, strict=True))
        torch.testing.assert_close(angle, mean + spread * torch.tensor(wanted))


def test_spherical_uniform_covers_a_band_of_the_sphere_evenly():
    band = math.pi / 4 * 85 / 90
    settings = {"yaw_spread": math.pi, "pitch_mean": band, "pitch_spread": band}
    pitch, _ = draw("spherical_uniform", **settings)
    heights = pitch.cos()  # even in height is even in area (Archimedes)
    assert heights.max().item() == pytest.approx(1, abs=0.001)
    assert heights.min().item() == pytest.approx(1 - 85 / 90, abs=0.001)
    share = torch.histogram(heights, 8).hist / COUNT
    assert share.sub(1 / 8).abs().max() < 0.01
    center, _ = distribution("spherical_uniform", **settings).center()
    assert center == pytest.approx(1.0148, abs=1e-4)


def test_hybrid_throws_one_coin_per_batch():
    spreads = set()
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        _, yaw = sample_poses(distribution("hybrid"), 4000, rng=rng)
        spreads.add("uniform" if (yaw - 1.5).abs().max() <= 0.6 else "gaussian")
    assert spreads == {"uniform", "gaussian"}


def test_pitch_stays_off_the_poles():
    pitch, _ = draw("gaussian", pitch_mean=0.0, pitch_spread=3.0)
    assert pitch.min().item() == pytest.approx(1e-5)
    assert pitch.max().item() == pytest.approx(math.pi - 1e-5)


def test_gaussian_spreads_are_deviations_and_yaw_is_drawn_before_pitch():
    pitch, yaw = sample_poses(distribution("gaussian"), 3, rng=torch.Generator().manual_seed(4))
    rng = torch.Generator().manual_seed(4)
    torch.testing.assert_close(yaw, 1.5 + 0.3 * torch.randn(3, generator=rng))
    torch.testing.assert_close(pitch, 1.4 + 0.15 * torch.randn(3, generator=rng))
