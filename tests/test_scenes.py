"""Toy cars: distances, depths and images agree; an image depends only on its number."""

import math

import pytest
import torch

from datasets import dataset_options, open_images
from generators.cameras import PoseDistribution, Poses, Rays, cast_rays
from scenes.colors import brightness, car_albedo
from scenes.rendering import render_cars
from scenes.sphere_tracing import trace
from scenes.toy_car_images import (
    FAR,
    FOV_DEGREES,
    NEAR,
    TOY_CAR_POSES,
    toy_car_images,
    toy_car_scenes,
)
from scenes.toy_cars import (
    NUM_DRAWS,
    WHEEL_OVERHANG,
    Geometry,
    car_distance,
    car_normals,
    cars_from_uniform,
)

RADIUS = 0.25  # of the sphere that holds every car


def stream(seed):
    return torch.Generator().manual_seed(seed)


def random_points(count, num_points, seed, radius=RADIUS):
    return radius * (2 * torch.rand(count, num_points, 3, generator=stream(seed)) - 1)


def sample_cars(count, seed):
    return cars_from_uniform(torch.rand(count, NUM_DRAWS, generator=stream(seed)))


def per_point(cars):
    """Return the geometry as (N, 1), to broadcast with points (N, P, 3)."""
    return Geometry(*(numbers[:, None] for numbers in cars.geometry))


def signed_distance(cars, points):
    return car_distance(per_point(cars), points)


def pictured_depths(count, size=24):
    """Return cars, the rays of one image of each, and its depths (N, R)."""
    cars, poses = toy_car_scenes(range(count), seed=5)
    depths = render_cars(cars, poses, size, FOV_DEGREES, supersampling=1).depths
    return cars, cast_rays(poses, size, FOV_DEGREES), depths.flatten(1)


def dense_march(cars, rays, spacing):
    """Return the first depth with negative distance by dense sampling; inf if there is none."""
    first = torch.full(rays.origins.shape[:2], torch.inf)
    for depth in torch.arange(NEAR, FAR, spacing).flip(0):
        is_inside = signed_distance(cars, rays.origins + depth * rays.directions) < 0
        first = torch.where(is_inside, depth, first)
    return first


class TestSphereTracing:
    def sphere_depths(self, offsets, near=0.5, far=1.5):
        origins = torch.stack([offsets, torch.zeros_like(offsets), -torch.ones_like(offsets)], -1)
        rays = Rays(origins, torch.tensor([0.0, 0.0, 1.0]).expand_as(origins))
        near, far = torch.full_like(offsets, near), torch.full_like(offsets, far)
        return trace(lambda _: lambda p: p.norm(dim=-1) - 0.2, rays, near, far)

    def test_depths_of_a_sphere_match_the_closed_form_and_rays_beside_it_miss(self):
        offsets = torch.linspace(0, 0.199, 100)
        expected = 1 - (0.2**2 - offsets**2).sqrt()
        torch.testing.assert_close(self.sphere_depths(offsets), expected, atol=1e-4, rtol=0)
        assert self.sphere_depths(torch.linspace(0.2002, 0.4, 50)).isinf().all()

    def test_a_thin_plate_has_no_holes(self):
        x = torch.linspace(-0.1, 0.1, 1001)
        origins = torch.stack([x, torch.full_like(x, 0.3), torch.full_like(x, -1)], -1)
        target = torch.stack([x.flip(0), torch.zeros_like(x), torch.zeros_like(x)], -1)
        directions = torch.nn.functional.normalize(target - origins, dim=-1)
        near, far = torch.full_like(x, 0.5), torch.full_like(x, 1.5)
        rays = Rays(origins, directions)
        depths = trace(lambda _: lambda p: p[:, 2].abs() - 1e-3, rays, near, far)
        torch.testing.assert_close(depths, (1 - 1e-3) / directions[:, 2], atol=1e-4, rtol=0)

    def test_depths_do_not_depend_on_the_other_rays(self):
        offsets = torch.linspace(0, 0.3, 97)
        alone = torch.cat([self.sphere_depths(part) for part in offsets.split(10)])
        assert torch.equal(self.sphere_depths(offsets), alone)

    def test_rays_of_nan_and_rays_that_end_before_they_begin_miss(self):
        assert self.sphere_depths(torch.tensor([math.nan])).isinf().all()
        assert self.sphere_depths(torch.zeros(1), near=1.0, far=0.5).isinf().all()


class TestSignedDistance:
    def test_never_changes_faster_than_the_way_between_two_points(self):
        cars = sample_cars(64, 0)
        a = random_points(64, 400, 1)
        scales = 10 ** (-3 * torch.rand(64, 400, 1, generator=stream(2)))
        b = a + scales * random_points(64, 400, 3)
        change = (signed_distance(cars, a) - signed_distance(cars, b)).abs()
        assert (change <= (a - b).norm(dim=-1) * 1.0001 + 1e-6).all()

    def test_cars_fit_in_their_box_and_their_box_in_the_sphere(self):
        cars = sample_cars(500, 6)
        car = cars.geometry
        half = torch.stack([car.half_length, car.half_height, car.half_width + WHEEL_OVERHANG], -1)
        assert (half[:, 0] <= 0.2).all()
        assert (half.norm(dim=-1) < RADIUS).all()
        points = random_points(500, 400, 7)
        is_outside = (points.abs() > half[:, None]).any(-1)
        assert (signed_distance(cars, points)[is_outside] > 0).all()

    def test_symmetric_in_z(self):
        cars = sample_cars(8, 9)
        points = random_points(8, 200, 10)
        mirrored = points * torch.tensor([1.0, 1.0, -1.0])
        assert torch.equal(signed_distance(cars, points), signed_distance(cars, mirrored))

    def test_wheels_stand_on_the_ground_and_the_roof_is_on_top(self):
        cars = sample_cars(50, 11)
        car = cars.geometry
        ground = torch.stack([car.axle_x, -car.half_height, car.axle_z], -1)[:, None]
        assert (signed_distance(cars, ground).abs() < 1e-6).all()
        roof_x = 0.5 * (car.cabin_front + car.cabin_rear)
        roof = torch.stack([roof_x, car.half_height, torch.zeros_like(roof_x)], -1)[:, None]
        assert (signed_distance(cars, roof).abs() < 0.01).all()

    def test_normals_are_those_of_autograd(self):
        cars, rays, depths = pictured_depths(6)
        hit = depths.isfinite()
        points = rays.origins + depths.where(hit, 1.0)[..., None] * rays.directions
        leaf = points.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(signed_distance(cars, leaf).sum(), leaf)
        normals = car_normals(per_point(cars), points)[hit]
        cosine = (normals * torch.nn.functional.normalize(gradient[hit], dim=-1)).sum(-1)
        torch.testing.assert_close(normals.norm(dim=-1), torch.ones(len(normals)))
        assert (cosine > 0.999).float().mean() > 0.97  # all but sharp creases


class TestDepths:
    def test_depths_lie_on_the_surface(self):
        cars, rays, depths = pictured_depths(30)
        hit = depths.isfinite()
        assert 0.05 < hit.float().mean() < 0.4
        assert ((depths[hit] > NEAR) & (depths[hit] < FAR)).all()
        points = rays.origins + depths.where(hit, 1.0)[..., None] * rays.directions
        assert (signed_distance(cars, points).abs()[hit] < 2e-4).all()

    def test_depths_agree_with_a_dense_march(self):
        cars, rays, depths = pictured_depths(8)
        spacing = 1e-3
        expected = dense_march(cars, rays, spacing)
        # The march sees a surface up to a step late and overlooks what is thinner than a step.
        assert not (expected.isfinite() & depths.isinf()).any()
        assert (depths.isfinite() & expected.isinf()).float().mean() < 0.002
        late = (expected - depths)[expected.isfinite()]
        assert (late > -1e-4).all()
        assert (late < spacing + 1e-4).float().mean() > 0.99


class TestPictures:
    def test_ground_is_white_and_cars_are_not(self):
        cars, poses = toy_car_scenes(range(20), seed=2)
        images, depths = render_cars(cars, poses, 32, FOV_DEGREES, supersampling=1)
        is_ground = depths.isinf()
        assert (images.movedim(1, -1)[is_ground] == 1).all()
        assert (images.amin(1)[~is_ground] < 0.99).all()
        assert ((images >= 0) & (images <= 1)).all()

    def test_border_is_white_from_everywhere(self):
        images = toy_car_images(range(100), 32, seed=3).images
        for edge in (images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]):
            assert (edge == 255).all()

    def test_a_car_from_the_side_is_as_long_and_high_as_it_is(self):
        cars = sample_cars(6, 13)
        side = Poses(torch.full((6,), math.pi / 2), torch.full((6,), math.pi / 2))
        size = 128
        is_car = render_cars(cars, side, size, FOV_DEGREES, supersampling=1).depths.isfinite()
        pixel = 2 * math.tan(math.radians(FOV_DEGREES / 2)) / (size - 1)
        long, high = is_car.any(1).sum(1) * pixel, is_car.any(2).sum(1) * pixel
        # Seen from distance 1, what is nearer by z is larger by 1 / (1 - z).
        assert ((long / (2 * cars.geometry.half_length) - 1).abs() < 0.1).all()
        assert (high > 1.9 * cars.geometry.half_height).all()
        assert (high < 2.2 * cars.geometry.half_height + 2 * pixel).all()

    def test_supersampling_comes_close_to_a_much_finer_picture(self):
        cars, poses = toy_car_scenes(range(4), seed=5)
        jagged, smooth, fine = (
            render_cars(cars, poses, 16, FOV_DEGREES, supersampling=n).images for n in (1, 3, 9)
        )
        is_car = (fine < 1).any(1, keepdim=True).expand_as(fine)
        error = (smooth - fine).abs()[is_car].mean()
        assert error < 0.3 * (jagged - fine).abs()[is_car].mean()

    def test_light_falls_from_above_and_colors_stay_in_range(self):
        cars = sample_cars(3, 14)
        points = random_points(3, 500, 15)
        normals = car_normals(per_point(cars), points)
        paint = cars.paint.T[..., None].expand(3, 3, 500)
        colors = car_albedo(per_point(cars), paint, points) * brightness(normals)
        assert ((colors >= 0) & (colors <= 1)).all()
        up, down = brightness(torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]]))
        assert up > down > 0

    def test_front_and_rear_differ(self):
        cars = sample_cars(1, 16)
        ends = Poses(torch.full((2,), 1.4), torch.tensor([0.0, math.pi]))
        front, rear = render_cars(cars[torch.zeros(2, dtype=torch.long)], ends, 32, 30.0).images
        assert (front - rear.flip(-1)).abs().max() > 0.3


class TestDataSet:
    def test_an_image_depends_on_seed_and_index_alone(self):
        whole = toy_car_images(range(12), 24, seed=6)
        again = toy_car_images([7, 2], 24, seed=6)
        parts = [toy_car_images(range(a, a + 4), 24, seed=6) for a in (0, 4, 8)]
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.images[[7, 2]], again.images)
        assert torch.equal(whole.poses.yaw[[7, 2]], again.poses.yaw)
        assert torch.equal(whole.cars.paint[[7, 2]], again.cars.paint)

    def test_bytes_do_not_depend_on_how_many_are_rendered_at_once(self, monkeypatch):
        whole = toy_car_images(range(6), 24, seed=7).images
        monkeypatch.setattr("scenes.toy_car_images.PIXELS_AT_ONCE", 1)
        monkeypatch.setattr("scenes.sphere_tracing.LANES", 100)
        assert torch.equal(whole, toy_car_images(range(6), 24, seed=7).images)

    def test_points_of_the_data_set_are_jagged(self, tmp_path):
        cars, poses = toy_car_scenes(range(5), seed=0)
        images = render_cars(cars, poses, 16, FOV_DEGREES, supersampling=1).images
        options = dataset_options("ToyCars", None, resize="points", num_images=5)
        found = open_images(options, 16, cache_dir=tmp_path, show_progress=False)
        assert torch.equal(found.batch(torch.arange(5)), (images * 255 + 0.5).to(torch.uint8))
        assert set(found.pixels[:, 0][images[:, 0].numpy() == 1]) == {255}

    def test_other_seeds_are_other_sets(self):
        a, b = (toy_car_scenes(range(50), seed=seed)[0].paint for seed in (0, 1))
        assert torch.cdist(a, b).amin() > 0

    def test_cars_vary(self):
        cars, _ = toy_car_scenes(range(300), seed=8)
        car = cars.geometry
        assert len(cars) == 300
        for numbers in (cars.paint.sum(1), *car):
            assert len(numbers.unique()) > 290
        assert 2 * (car.half_length.max() - car.half_length.min()) > 0.05
        has_most = cars.paint.argmax(1).bincount(minlength=3)
        assert (has_most > 50).all()

    def test_own_poses_cover_the_upper_hemisphere(self):
        _, poses = toy_car_scenes(range(1000), seed=9)
        height = poses.pitch.cos()
        assert height.min() > 0
        assert height.mean() == pytest.approx(1 - TOY_CAR_POSES.pitch_mean * 2 / math.pi, abs=0.03)
        assert poses.yaw.cos().mean().abs() < 0.08
        assert poses.yaw.sin().mean().abs() < 0.08

    def test_poses_of_the_caller(self):
        frontal = PoseDistribution(
            kind="gaussian", yaw_mean=0.3, yaw_spread=0.0, pitch_mean=1.2, pitch_spread=0.0
        )
        _, poses = toy_car_scenes(range(3), seed=0, poses=frontal)
        assert torch.equal(poses.yaw, torch.full((3,), 0.3))
        assert torch.equal(poses.pitch, torch.full((3,), 1.2))

    def test_images_are_of_8_bits(self):
        images = toy_car_images(range(3), 8, seed=0).images
        assert (images.dtype, images.shape) == (torch.uint8, (3, 3, 8, 8))
