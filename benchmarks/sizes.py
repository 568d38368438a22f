"""Cost per point and peak memory of a view, over image sizes, samples and numbers of objects."""

import resource
import time
from dataclasses import replace

import torch

import curriculums
from generators.cameras import Poses

CASES = [(64, 12, 1), (128, 12, 1), (256, 12, 1), (64, 48, 1), (64, 12, 4), (64, 12, 16)]
CHUNK = 2**17  # points, as the commands have it


@torch.no_grad()
def measure() -> list[dict[str, float]]:
    """One row per case, in an order in which the memory's peak would show growth."""
    torch.manual_seed(0)
    curriculum = curriculums.load("Demo")
    generator = curriculum.build_generator()
    rows = []
    for size, steps, objects in CASES:
        options = replace(curriculum.preview_render(0, size), num_steps=steps, scene_radius=None)
        film = generator.mapping(torch.randn(objects, generator.z_dim))
        poses = Poses(torch.full((objects,), 1.2), torch.full((objects,), 0.5))
        start = time.process_time()
        generator.render(film, poses, options, points_per_chunk=CHUNK)
        seconds = time.process_time() - start
        points = size**2 * 2 * steps * objects
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        rows.append({"image_size": size, "steps": steps, "objects": objects,
                     "points": points, "ns_per_point": seconds / points * 1e9,
                     "peak_mb": peak})  # fmt: skip
    return rows
