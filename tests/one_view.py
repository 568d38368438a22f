"""Render one view of one object, for tests."""

import torch

from generators.cameras import Poses


@torch.no_grad()
def look(saved, film, pitch, yaw, options, points_per_chunk=None):
    poses = Poses(torch.tensor([pitch]), torch.tensor([yaw]))
    return saved.generator.render(film, poses, options, points_per_chunk=points_per_chunk)
