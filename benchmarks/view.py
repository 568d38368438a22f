"""One 256 px view of CelebA's networks with 24 + 24 samples: seconds and memory of a process."""

import resource
import time
from dataclasses import replace

import torch

import curriculums
import viewing
from generators.cameras import Poses

SIZE, STEPS = 256, 24


@torch.no_grad()
def measure(precision: str) -> dict[str, float]:
    """Wall and processor seconds of the view, and the peak memory of this process in MB."""
    torch.manual_seed(0)
    curriculum = curriculums.load("CelebA")
    generator = curriculum.build_generator().eval()
    generator.field_dtype = None if precision == "exact" else viewing.FAST_DTYPES["cpu"]
    options = replace(curriculum.preview_render(0, SIZE), num_steps=STEPS)
    film = generator.mapping(torch.randn(1, generator.z_dim))
    poses = Poses(torch.tensor([torch.pi / 2]), torch.tensor([torch.pi / 2]))
    wall, processor = time.perf_counter(), time.process_time()
    generator.render(film, poses, options, points_per_chunk=viewing.CPU_CHUNK)
    return {
        "seconds": time.perf_counter() - wall,
        "cpu_seconds": time.process_time() - processor,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
