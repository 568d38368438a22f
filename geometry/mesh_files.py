"""BOUNDARY: density grids and meshes to files: mrc, ply, obj, stl, glb.

Axes are those of the scene in every format: right-handed, y up, one unit is one scene unit (a meter
where the format has meters, as glTF does). Written by hand because the bytes must be the same in
every run and glTF wants linear colors; the tests read them with trimesh and mrcfile.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from geometry.density_grid import Cube
from geometry.surface import Array, Mesh
from system.files import replaced

TITLE = b"pi-GAN, done right"
ROWS_PER_WRITE = 2**15  # of text; bounds the memory


def save_mrc(path: Path, values: Array, cube: Cube) -> None:
    """Write float32 values (N, N, N) as an MRC2014 volume of mode 2.

    mrcfile reads the array back as it is, [ix, iy, iz]. The header says that x is the slowest axis
    and z the fastest, so that viewers show the scene's own axes, not mirrored. The length unit
    (Angstrom in the format's own field) is the scene unit.

    Raises:
        OSError: it cannot be written; filename is path where the system says why.
    """
    with replaced(path) as file:
        file.write(_mrc_header(values, cube))
        for plane in values:  # one at a time: no second copy of the grid
            file.write(np.ascontiguousarray(plane, "<f4").tobytes())


def _mrc_header(values: Array, cube: Cube) -> bytes:
    """The 1024 bytes that describe a volume.

    Source: MRC2014 (Cheng et al. 2015), table 1; word numbers count from 1.
    """
    count = len(values)
    mean = float(np.mean([plane.mean(dtype=np.float64) for plane in values]))
    square = float(np.mean([np.square(plane - mean, dtype=np.float64).mean() for plane in values]))
    header = bytearray(1024)

    def put(word: int, code: str, *numbers: float) -> None:
        struct.pack_into(f"<{len(numbers)}{code}", header, 4 * (word - 1), *numbers)

    put(1, "i", count, count, count, 2)  # columns, rows, sections, mode 2: float32
    put(8, "i", count, count, count)  # intervals of the cell along x, y, z
    put(11, "f", *[count * cube.spacing] * 3, 90, 90, 90)
    put(17, "i", 3, 2, 1)  # the axes of columns, rows and sections: z, y, x
    put(20, "f", values.min(), values.max(), mean)
    put(23, "i", 1)  # space group of a volume
    put(28, "i", 20141)  # version
    put(50, "f", *cube.first)
    header[208:216] = b"MAP DD\0\0"  # little-endian
    put(55, "f", square**0.5)
    put(56, "i", 1)  # number of labels
    header[224:304] = (TITLE + b": raw density per scene unit").ljust(80)
    return bytes(header)


def _write_ply(file: BinaryIO, mesh: Mesh) -> None:
    """Binary PLY with normals and colors of eight bits."""
    names = ("x", "y", "z", "nx", "ny", "nz")
    header = ["ply", "format binary_little_endian 1.0", f"comment {TITLE.decode()}; y is up"]
    header += [f"element vertex {len(mesh.vertices)}", *(f"property float {n}" for n in names)]
    header += [f"property uchar {name}" for name in ("red", "green", "blue")]
    header += [f"element face {len(mesh.triangles)}"]
    header += ["property list uchar int vertex_indices", "end_header", ""]
    file.write("\n".join(header).encode())
    vertices = np.zeros(len(mesh.vertices), [("place", "<f4", 6), ("color", "u1", 3)])
    vertices["place"] = np.concatenate([mesh.vertices, mesh.normals], axis=1)
    vertices["color"] = _eight_bits(mesh.colors)
    file.write(vertices.tobytes())
    faces = np.zeros(len(mesh.triangles), [("count", "u1"), ("corners", "<i4", 3)])
    faces["count"], faces["corners"] = 3, mesh.triangles
    file.write(faces.tobytes())


def _write_obj(file: BinaryIO, mesh: Mesh) -> None:
    """OBJ text; colors stand behind the places of vertices, as most programs read them."""
    file.write(b"# " + TITLE + b"; y is up\n")
    _write_rows(file, "v %.7g %.7g %.7g %.4f %.4f %.4f\n", [mesh.vertices, mesh.colors])
    _write_rows(file, "vn %.4f %.4f %.4f\n", [mesh.normals])
    corners = np.repeat(mesh.triangles + 1, 2, axis=1)  # place and normal of each corner
    _write_rows(file, "f %d//%d %d//%d %d//%d\n", [corners])


def _write_rows(file: BinaryIO, template: str, columns: list[Array]) -> None:
    for start in range(0, len(columns[0]), ROWS_PER_WRITE):
        rows = np.concatenate([array[start : start + ROWS_PER_WRITE] for array in columns], axis=1)
        file.write((template * len(rows) % tuple(rows.ravel().tolist())).encode())


def _write_stl(file: BinaryIO, mesh: Mesh) -> None:
    """Binary STL: triangles alone, without colors."""
    corners = mesh.vertices[mesh.triangles]  # (T, 3, 3)
    doubled = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    length = np.linalg.norm(doubled, axis=1, keepdims=True)
    facets = np.zeros(len(corners), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("", "<u2")])
    facets["normal"] = doubled / np.maximum(length, np.finfo(np.float32).tiny)
    facets["corners"] = corners
    file.write(TITLE.ljust(80) + struct.pack("<I", len(corners)))
    file.write(facets.tobytes())


def _write_glb(file: BinaryIO, mesh: Mesh) -> None:
    """Binary glTF 2.0 with normals and linear colors, shown as they are, without lamps.

    Source: glTF 2.0 specification, sections 3.7.2 and 4; extension KHR_materials_unlit.
    """
    blobs = [
        mesh.vertices.astype("<f4").tobytes(),
        mesh.normals.astype("<f4").tobytes(),
        _linear(mesh.colors).astype("<f4").tobytes(),
        mesh.triangles.astype("<u4").tobytes(),
    ]
    starts = np.cumsum([0, *map(len, blobs)]).tolist()
    floats = {"componentType": 5126, "type": "VEC3", "count": len(mesh.vertices)}
    accessors = [{"bufferView": i, **floats} for i in range(3)]
    accessors[0] |= {"min": mesh.vertices.min(0).tolist(), "max": mesh.vertices.max(0).tolist()}
    accessors += [
        {"bufferView": 3, "componentType": 5125, "type": "SCALAR", "count": mesh.triangles.size}
    ]
    attributes = {"POSITION": 0, "NORMAL": 1, "COLOR_0": 2}
    scene = {
        "asset": {"version": "2.0", "generator": TITLE.decode()},
        "extensionsUsed": ["KHR_materials_unlit"],
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"mesh": 0}],
        "meshes": [{"primitives": [{"attributes": attributes, "indices": 3, "material": 0}]}],
        "materials": [
            {
                "pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 1.0},
                "extensions": {"KHR_materials_unlit": {}},
            }
        ],
        "accessors": accessors,
        "bufferViews": [
            {"buffer": 0, "byteOffset": start, "byteLength": len(blob), "target": target}
            for start, blob, target in zip(starts, blobs, [34962] * 3 + [34963], strict=False)
        ],
        "buffers": [{"byteLength": starts[-1]}],
    }
    text = json.dumps(scene, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    file.write(struct.pack("<4sII", b"glTF", 2, 12 + 8 + len(text) + 8 + starts[-1]))
    file.write(struct.pack("<I4s", len(text), b"JSON") + text)
    file.write(struct.pack("<I4s", starts[-1], b"BIN\0"))
    for blob in blobs:
        file.write(blob)


def _eight_bits(colors: Array) -> Array:
    return np.asarray((colors * 255).round().clip(0, 255).astype(np.uint8))


def _linear(colors: Array) -> Array:
    """Linear light of colors as pictures store them (IEC 61966-2-1), both in [0, 1]."""
    return np.asarray(
        np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    )


MESH_WRITERS: dict[str, Callable[[BinaryIO, Mesh], None]] = {
    "ply": _write_ply,
    "obj": _write_obj,
    "stl": _write_stl,
    "glb": _write_glb,
}


def save_mesh(path: Path, mesh: Mesh) -> None:
    """Write a mesh in the format that path ends in, one of MESH_WRITERS.

    Raises:
        OSError: it cannot be written; filename is path where the system says why.
    """
    with replaced(path) as file:
        MESH_WRITERS[path.suffix.removeprefix(".")](file, mesh)
