"""Write density grids and meshes to files: mrc, ply, obj, stl, glb.

By default every format keeps the axes and the unit of the scene: right-handed, y up, and one scene
unit is one meter where the format has meters, as glTF does. Programs for 3D printing expect z up
and millimeters.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import trimesh
from mrcfile.mrcinterpreter import MrcInterpreter

from geometry.density_grid import Cube
from geometry.surface import Array, Mesh, as_trimesh
from system.files import replaced, write_file

TITLE = "pi-GAN, done right"
DIGITS = 7  # significant digits of coordinates in text, all that float32 has
Z_UP = np.array([[1, 0, 0], [0, 0, 1], [0, -1, 0]], np.float32)  # (x, y, z) @ Z_UP = (x, -z, y)
BUFFER, INDEX_BUFFER = 34962, 34963  # glTF's numbers for the use of a part of the data


def save_mrc(path: Path, values: Array, cube: Cube) -> None:
    """Write float32 values (N, N, N) as an MRC2014 volume; OSError names path where it can.

    mrcfile reads the array back in the same order, [ix, iy, iz]. The header declares x the slowest
    axis and z the fastest, so that viewers show the scene's own axes instead of a mirror image. The
    unit of length, Angstrom in the format, stands for the scene unit.
    """
    with replaced(path) as file:
        volume = MrcInterpreter()  # mrcfile's documented way to write into an open file
        volume._create_default_attributes()
        volume._iostream = file
        volume.set_data(values)
        volume.voxel_size = cube.spacing
        volume.header.origin = cube.first
        volume.header.mapc, volume.header.mapr, volume.header.maps = 3, 2, 1
        # In place of mrcfile's label, which holds the time: equal grids give equal files.
        volume.header.label[0] = f"{TITLE}: raw density per scene unit"
        volume.flush()


def save_mesh(path: Path, mesh: Mesh, *, scale: float = 1.0, up: Literal["y", "z"] = "y") -> None:
    """Write a mesh in the format of path's suffix, one of MESH_FORMATS; OSError as save_mrc.

    scale: the file's units per scene unit. up: the file's upward axis; with z, the front of the
    object faces -y.
    """
    axes = Z_UP if up == "z" else np.eye(3, dtype=np.float32)
    vertices = mesh.vertices * np.float32(scale)
    mesh = replace(mesh, vertices=vertices @ axes, normals=mesh.normals @ axes)
    content: bytes | str = MESH_FORMATS[path.suffix.removeprefix(".")](mesh)
    write_file(path, content.encode() if isinstance(content, str) else content)


def _ply(mesh: Mesh) -> Any:
    """Return a binary PLY with normals and 8-bit sRGB colors."""
    return _colored(mesh).export(file_type="ply", vertex_normal=True)


def _obj(mesh: Mesh) -> Any:
    """Return an OBJ text with normals, and sRGB colors after each vertex's coordinates."""
    digits = max(4, DIGITS - math.ceil(math.log10(np.abs(mesh.vertices).max())))
    return _colored(mesh).export(file_type="obj", include_normals=True, digits=digits, header=TITLE)


def _glb(mesh: Mesh) -> Any:
    """Return a binary glTF 2.0 with normals, float32 linear colors and an unlit material."""
    exported = as_trimesh(mesh)
    # trimesh rounds colors to 8 bits, too coarse for dark linear ones; an attribute stays float32.
    exported.vertex_attributes["_COLOR"] = _linear(mesh.colors)
    return exported.export(file_type="glb", include_normals=True, tree_postprocessor=_make_unlit)


def _make_unlit(tree: dict[str, Any]) -> None:
    """Turn the attribute _COLOR into the vertex color and add an unlit material.

    Source: glTF 2.0 specification, sections 3.6.2 and 3.7.2; extension KHR_materials_unlit.
    """
    (primitive,) = tree["meshes"][0]["primitives"]
    attributes = primitive["attributes"]
    attributes["COLOR_0"] = attributes.pop("_COLOR")
    targets = {primitive["indices"]: INDEX_BUFFER, **dict.fromkeys(attributes.values(), BUFFER)}
    for accessor, target in targets.items():
        tree["bufferViews"][tree["accessors"][accessor]["bufferView"]]["target"] = target
    primitive["material"] = 0
    rough = {"metallicFactor": 0.0, "roughnessFactor": 1.0}
    unlit = {"pbrMetallicRoughness": rough, "extensions": {"KHR_materials_unlit": {}}}
    tree["materials"] = [unlit]
    tree["extensionsUsed"] = ["KHR_materials_unlit"]
    tree["asset"]["generator"] = TITLE


def _colored(mesh: Mesh) -> trimesh.Trimesh:
    """Convert a mesh to trimesh's class, with 8-bit colors."""
    colors = (mesh.colors * 255).round().clip(0, 255).astype(np.uint8)
    colored = as_trimesh(mesh)
    colored.visual = trimesh.visual.ColorVisuals(colored, vertex_colors=colors)
    return colored


def _linear(colors: Array) -> Array:
    """Convert sRGB colors to linear ones (IEC 61966-2-1), both in [0, 1], float32."""
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    return np.asarray(linear, np.float32)


MESH_FORMATS: dict[str, Callable[[Mesh], Any]] = {
    "ply": _ply,
    "obj": _obj,
    "stl": lambda mesh: as_trimesh(mesh).export(file_type="stl"),  # binary, without colors
    "glb": _glb,
}
