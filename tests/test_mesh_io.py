"""Files of grids and meshes, read back by other people's libraries."""

import json
import struct
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import trimesh

from geometry import mesh_files
from geometry.density_grid import Cube
from geometry.surface import Mesh, vertex_normals

CUBE = Cube(center=(0.1, 0.2, 0.3), side=0.9, resolution=4)  # voxels 0.3 apart


@pytest.fixture
def values():
    """Return values that increase by 100 along x, 10 along y and 1 along z."""
    steps = np.arange(4, dtype=np.float32)
    return 100 * steps[:, None, None] + 10 * steps[:, None] + steps


@pytest.fixture
def tetrahedron():
    vertices = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.2, 0], [0, 0, 0.1]], np.float32)
    triangles = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], np.int32)
    colors = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0]], np.float32)
    return Mesh(
        vertices=vertices,
        triangles=triangles,
        normals=vertex_normals(vertices, triangles),
        colors=colors,
    )


def test_mrc_holds_the_array_the_voxel_size_and_the_axes(tmp_path, values):
    mesh_files.save_mrc(tmp_path / "a.mrc", values, CUBE)
    assert mrcfile.validate(tmp_path / "a.mrc")
    with mrcfile.open(tmp_path / "a.mrc") as file:
        assert np.array_equal(file.data, values)
        assert file.data[3, 1, 2] == 312  # [ix, iy, iz]
        assert file.header.mode == 2
        assert file.data.dtype == np.float32
        assert file.voxel_size.tolist() == pytest.approx((0.3, 0.3, 0.3))
        first = [file.header.origin[axis] for axis in "xyz"]
        assert first == pytest.approx([-0.35, -0.25, -0.15])
        # The fastest axis, z, is called the third: programs that heed this see no mirror image.
        assert [file.header[name].item() for name in ("mapc", "mapr", "maps")] == [3, 2, 1]
        assert file.header.dmin == 0
        assert file.header.dmax == 333
        assert file.header.dmean == pytest.approx(values.mean())
        assert file.header.rms == pytest.approx(values.std())
        # Without the time, so that equal grids give equal files.
        assert file.get_labels() == ["pi-GAN, done right: raw density per scene unit"]


@pytest.mark.parametrize("name", mesh_files.MESH_FORMATS)
@pytest.mark.parametrize(
    ("where", "bounds"),
    [
        ({}, [[0, 0, 0], [0.3, 0.2, 0.1]]),
        ({"scale": 1000, "up": "z"}, [[0, -100, 0], [300, 0, 200]]),  # front at the lowest y
    ],
)
def test_trimesh_reads_what_was_written(name, where, bounds, tmp_path, tetrahedron):
    path = tmp_path / f"a.{name}"
    mesh_files.save_mesh(path, tetrahedron, **where)
    found = trimesh.load(path, force="mesh", skip_materials=True)
    assert found.is_watertight
    sides = np.ptp(bounds, axis=0)
    assert found.volume == pytest.approx(np.prod(sides) / 6)  # positive: wound outward
    np.testing.assert_allclose(found.bounds, bounds, atol=1e-7)
    if name != "stl":  # the normals of its file are those of triangles
        turned = np.einsum("vi,vi->v", found.vertex_normals, found.vertices - found.centroid)
        assert (turned > 0).all()


@pytest.mark.parametrize("name", ["ply", "obj"])
def test_colors_are_those_of_pictures(name, tmp_path, tetrahedron):
    mesh_files.save_mesh(tmp_path / f"a.{name}", tetrahedron)
    found = trimesh.load(tmp_path / f"a.{name}", process=False)
    assert found.visual.vertex_colors[:, :3].tolist()[3] == [128, 64, 0]
    np.testing.assert_allclose(found.vertices, tetrahedron.vertices)
    np.testing.assert_array_equal(found.faces, tetrahedron.triangles)
    np.testing.assert_allclose(found.vertex_normals, tetrahedron.normals, atol=1e-4)


def test_glb_has_linear_colors_normals_and_meters(tmp_path, tetrahedron):
    path = tmp_path / "a.glb"
    mesh_files.save_mesh(path, tetrahedron)
    scene = trimesh.load(path, process=False, skip_materials=True)
    (found,) = scene.geometry.values()
    assert scene.units == "meters"
    half, quarter = 0.21404, 0.05088  # of the light, for values 0.5 and 0.25 (IEC 61966-2-1)
    expected = [round(255 * half), round(255 * quarter), 0]
    assert found.visual.vertex_colors[3, :3].tolist() == expected
    np.testing.assert_allclose(found.vertex_normals, tetrahedron.normals, atol=1e-6)


def test_glb_is_as_the_specification_says(tmp_path, tetrahedron):
    mesh_files.save_mesh(tmp_path / "a.glb", tetrahedron)
    content = (tmp_path / "a.glb").read_bytes()
    magic, version, length = struct.unpack_from("<4sII", content)
    assert (magic, version, length) == (b"glTF", 2, len(content))
    size, kind = struct.unpack_from("<I4s", content, 12)
    assert kind == b"JSON"
    assert size % 4 == 0
    scene = json.loads(content[20 : 20 + size])
    (primitive,) = scene["meshes"][0]["primitives"]
    accessors = {name: scene["accessors"][i] for name, i in primitive["attributes"].items()}
    assert set(accessors) == {"POSITION", "NORMAL", "COLOR_0"}
    assert accessors["POSITION"]["max"] == pytest.approx([0.3, 0.2, 0.1])
    assert accessors["COLOR_0"]["componentType"] == 5126  # float32: 8 bits would band dark colors
    assert primitive["material"] == 0
    assert scene["materials"][0]["extensions"] == {"KHR_materials_unlit": {}}
    assert scene["extensionsUsed"] == ["KHR_materials_unlit"]
    for accessor in scene["accessors"]:
        view = scene["bufferViews"][accessor["bufferView"]]
        numbers = accessor["count"] * (3 if accessor["type"] == "VEC3" else 1)
        assert view["byteLength"] == 4 * numbers
        assert view["byteOffset"] % 4 == 0
    last = scene["bufferViews"][-1]
    assert last["byteOffset"] + last["byteLength"] == scene["buffers"][0]["byteLength"]


def test_text_keeps_the_digits_of_a_tiny_mesh(tmp_path, tetrahedron):
    tiny = replace(tetrahedron, vertices=tetrahedron.vertices * np.float32(1e-6))
    mesh_files.save_mesh(tmp_path / "a.obj", tiny)
    found = trimesh.load(tmp_path / "a.obj", process=False)
    np.testing.assert_allclose(found.vertices, tiny.vertices, rtol=1e-5)


def test_a_place_that_cannot_be_written_is_named(tmp_path, tetrahedron):
    path = tmp_path / "a.ply"
    path.mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        mesh_files.save_mesh(path, tetrahedron)
    assert caught.value.filename == str(path)
    assert list(tmp_path.iterdir()) == [path]
