"""The command's files for a generator with a known shape, and its errors."""

import dataclasses
import math

import mrcfile
import numpy as np
import pytest
import torch
import trimesh
from conftest import TINY
from PIL import Image

import extract_shapes
from checkpoint_io import checkpoints
from config import curriculum
from generators.generators import ImplicitGenerator3d
from geometry import mesh_extraction
from rendering import viewing
from siren.siren import SPATIALSIRENBASELINE
from system.errors import UsageError

CENTER, RADIUS = (0.02, 0.01, -0.015), 0.05
GREEN = torch.tensor([0.2, 0.8, 0.4])


class Ball(SPATIALSIRENBASELINE):
    """A field of known shape: an opaque green ball."""

    def density(self, points, film, **_):
        return 1e7 * (RADIUS - (points - torch.tensor(CENTER)).norm(dim=-1))

    def forward(self, points, directions, film, **_):
        colors = GREEN.expand(*points.shape[:2], 3)
        return torch.cat([colors, self.density(points, film)[..., None]], dim=-1)


@pytest.fixture(autouse=True)
def _small_pictures(monkeypatch):
    monkeypatch.setattr(mesh_extraction, "PREVIEW_SIZE", 48)


@pytest.fixture
def a_ball(monkeypatch):
    tiny = curriculum.build("Tiny", TINY)
    siren = Ball(z_dim=6, hidden_dim=8, num_layers=2, mapping_hidden_dim=8)
    saved = checkpoints.SavedGenerator(
        generator=ImplicitGenerator3d(siren).eval().requires_grad_(False),
        curriculum=tiny,
        step=6,
        average="ema",
        path="generator.pth",
    )
    monkeypatch.setattr(viewing.checkpoints, "load_generator", lambda *_, **__: saved)
    return saved


def run(folder, *words, of="any.pth"):
    words = [of, "--output_dir", folder, "--voxel_resolution", "48", *words]
    assert extract_shapes.main([str(word) for word in words]) == 0


def written(folder):
    return sorted(path.name for path in folder.glob("[!.]*"))


def test_by_default_a_grid_a_mesh_and_a_picture_of_each_seed(a_ball, tmp_path, capsys):
    run(tmp_path, "--seeds", "0", "7")
    names = [f"{seed}.{kind}" for seed in (0, 7) for kind in ("glb", "mrc", "png")]
    assert written(tmp_path) == names
    assert "7: level" in capsys.readouterr().out
    found = trimesh.load(tmp_path / "7.glb", force="mesh", skip_materials=True)
    assert found.is_watertight
    assert found.volume == pytest.approx(4 / 3 * math.pi * RADIUS**3, rel=0.01)
    assert np.abs(found.center_mass - CENTER).max() < 0.01 * RADIUS
    with Image.open(tmp_path / "7.png") as picture:
        assert picture.size == (4 * 48, 2 * 48)


def test_the_mesh_has_the_fields_color(a_ball, tmp_path):
    run(tmp_path, "--seed", "3", "--format", "ply")
    assert written(tmp_path) == ["3.ply", "3.png"]
    colors = trimesh.load(tmp_path / "3.ply", process=False).visual.vertex_colors[:, :3]
    assert (colors == np.round(255 * GREEN.numpy())).all()


def test_a_mesh_for_printing_is_in_millimeters_with_z_up(a_ball, tmp_path):
    run(tmp_path, "--seed", "0", "--format", "stl,mrc", "--scale", "1000", "--up", "z")
    found = trimesh.load(tmp_path / "0.stl")
    x, y, z = (1000 * number for number in CENTER)
    np.testing.assert_allclose(found.center_mass, (x, -z, y), atol=10 * RADIUS)
    assert found.volume == pytest.approx(4 / 3 * math.pi * (1000 * RADIUS) ** 3, rel=0.01)
    with mrcfile.open(tmp_path / "0.mrc") as file:  # the grid keeps the scene's axes
        assert file.voxel_size.x == pytest.approx(0.24 / 47)


def test_the_cube_is_what_the_rays_see_unless_given(a_ball, tmp_path):
    run(tmp_path, "--seed", "0", "--format", "mrc")
    with mrcfile.open(tmp_path / "0.mrc") as file:
        assert file.voxel_size.x == pytest.approx(0.24 / 47)
        assert file.header.origin.y == pytest.approx(-0.12)
    run(tmp_path, "--seed", "0", "--format", "mrc", "--cube_size", "0.3", "--center", *CENTER)
    with mrcfile.open(tmp_path / "0.mrc") as file:
        assert file.voxel_size.x == pytest.approx(0.3 / 47)
        assert file.header.origin.y == pytest.approx(CENTER[1] - 0.15)


@pytest.mark.parametrize(
    ("changes", "side"),
    [
        ({}, 0.24),
        ({"near": 0.8, "far": 1.25}, 0.5),
        ({"fov_degrees": 40}, 2 * math.sin(math.radians(20))),
        ({"scene_radius": 0.27, "background": "white"}, 0.54),
    ],
)
def test_the_side_of_the_cube(changes, side):
    options = curriculum.build("Tiny", TINY).evaluation_render(0)
    assert dataclasses.replace(options, **changes).visible_side == pytest.approx(side)


def test_the_raw_density_is_what_the_field_says(a_ball, tmp_path):
    run(tmp_path, "--seed", "0", "--format", "mrc", "--dense")
    axis = torch.linspace(-0.12, 0.12, 48)
    points = torch.cartesian_prod(axis, axis, axis)[None]
    expected = a_ball.generator.siren.density(points, None).view(48, 48, 48).numpy()
    with mrcfile.open(tmp_path / "0.mrc") as file:
        np.testing.assert_allclose(file.data, expected, rtol=1e-4, atol=10)


FEW = ("--seed", "1", "--voxel_resolution", "20", "--level", "0.5")


def test_all_formats_hold_the_same_mesh(tiny_run, tmp_path):
    more = ("--format", "mrc,ply,obj,stl,glb", "--all_components")
    run(tmp_path / "a", *FEW, *more, of=tiny_run / "generator.pth")
    assert written(tmp_path / "a") == [f"1.{k}" for k in ("glb", "mrc", "obj", "ply", "png", "stl")]
    meshes = [
        trimesh.load(tmp_path / "a" / f"1.{kind}", force="mesh", skip_materials=True)
        for kind in ("ply", "obj", "stl", "glb")
    ]
    assert all(mesh.is_watertight for mesh in meshes)
    assert [mesh.volume for mesh in meshes] == pytest.approx([meshes[0].volume] * 4, rel=1e-4)


def test_the_mesh_does_not_depend_on_the_chunk(tiny_run, tmp_path):
    meshes = []
    for chunk in ("2400000", "777"):
        more = ("--format", "ply", "--max_batch_size", chunk)
        run(tmp_path / chunk, *FEW, *more, of=tiny_run / "generator.pth")
        meshes.append(trimesh.load(tmp_path / chunk / "1.ply", process=False))
    one, other = meshes
    assert np.array_equal(one.faces, other.faces)
    np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-5)


def test_no_call_of_the_field_takes_more_points_than_asked_for(a_ball, tmp_path, monkeypatch):
    counts = []
    for name in ("density", "forward"):
        whole = getattr(Ball, name)

        def counted(self, points, *rest, whole=whole, **named):
            counts.append(points.shape[1])
            return whole(self, points, *rest, **named)

        monkeypatch.setattr(Ball, name, counted)
    run(tmp_path, "--seed", "0", "--max_batch_size", "5000")
    assert max(counts) == 5000


def test_locked_colors_are_others_than_free_ones(tiny_run, tmp_path):
    colors = []
    for name, more in (("free", ()), ("locked", ("--lock_view_dependence",))):
        run(tmp_path / name, *FEW, "--format", "ply", *more, of=tiny_run / "generator.pth")
        found = trimesh.load(tmp_path / name / "1.ply", process=False)
        colors.append(found.visual.vertex_colors)
    assert not np.array_equal(*colors)


def test_visible_only_opens_the_mesh_at_the_back(a_ball, tmp_path):
    run(tmp_path, "--seed", "0", "--format", "ply", "--visible_only")
    cut = trimesh.load(tmp_path / "0.ply")
    assert not cut.is_watertight
    assert cut.bounds[1, 2] == pytest.approx(CENTER[2] + RADIUS, abs=0.002)  # the cameras are at +z
    assert cut.bounds[0, 2] > CENTER[2] - 0.8 * RADIUS


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["--level", "1e9"], "0: no surface at level 1e\\+09 in the cube"),
        (["--center", "5", "0", "0"], "0: nothing in the cube is opaque"),
    ],
)
def test_an_empty_mesh_is_one_line_and_nothing_is_written(texts, message, a_ball, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(tmp_path / "out", *texts)
    assert not (tmp_path / "out").exists() or written(tmp_path / "out") == []


def test_the_flags_and_their_defaults():
    options = extract_shapes.build_parser()._option_string_actions
    assert set(options) == {
        *("-h", "--help", "--curriculum", "--curriculum_file", "--ema", "--device"),
        *("--seeds", "--seed", "--fit", "--psi", "--output_dir", "--format"),
        *("--voxel_resolution", "--cube_size", "--center", "--level", "--dense"),
        *("--all_components", "--visible_only", "--max_batch_size", "--lock_view_dependence"),
        *("--scale", "--up"),
        "--precision",
    }
    args = extract_shapes.build_parser().parse_args(["generator.pth"])
    assert (args.psi, args.voxel_resolution, args.seeds) == (0.5, 256, [0, 1, 2])
    assert (args.max_batch_size, str(args.output_dir)) == (2_400_000, "shapes")
    assert args.format == ["mrc", "glb"]
