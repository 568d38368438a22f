"""Warnings at the start of a run: pictures that are left out, small, few, or cannot be imitated."""

import math

import torch
from torch import Tensor

from datasets import ImageSet
from distributed.processes import Place
from generators.cameras import Poses, cast_rays
from generators.volumetric_rendering import RenderOptions
from siren.fused import arithmetic
from training.start import Start

NUM_LOOKED_AT = 1000  # pictures of the set
GROUND_DIFFERENCE = 48  # of 255, in one color: more than shadows and jpg artefacts on the ground
MAX_UNREACHABLE = 0.05  # share of the pictures


def of_start(place: Place, start: Start, images: dict[int, ImageSet]) -> list[str]:
    """Return warnings about the dataset, the cameras and the precision."""
    notes = [start.listing.left_out] if start.listing.left_out else []
    curriculum = start.curriculum
    is_slow = place.device.type == "cpu" and not arithmetic.HAS_BFLOAT16_INSTRUCTIONS
    if curriculum.settings.precision == "bf16" and is_slow:
        notes.append("this processor has no bfloat16 instructions, so that precision bf16 takes "
                     "several times as long as fp32 (measured: 6 to 7 times)")  # fmt: skip
    size, largest = max(images.items())
    if largest.num_small:
        crop = curriculum.settings.crop
        least = f"{size} px and are enlarged"
        if isinstance(crop, int) and crop > size:
            least = f"the crop of {crop} px; of each the largest square is taken"
        notes.append(f"{largest.num_small} of {len(largest)} pictures are smaller than {least}")
    current = curriculum.stage_settings(start.step)
    coming = [stage for first, stage in curriculum.stages if first > start.step]
    batch = place.world_size * max(stage.batch_size for stage in [current, *coming])
    if len(largest) < batch:
        notes.append(f"{len(largest)} pictures are fewer than a batch of {batch}, which repeats "
                     "some of them")  # fmt: skip
    render = curriculum.at(start.step).render
    return notes + of_ground(images[render.image_size], render)


def of_ground(images: ImageSet, render: RenderOptions) -> list[str]:
    """Return warnings if pictures show something where generated ones show the ground.

    The discriminator would tell them apart by that alone, and the generator learn little else.
    """
    is_white = render.background == "white"
    if render.background == "last_sample" or not is_white and render.scene_radius is None:
        return []
    difference = images.spread(NUM_LOOKED_AT).int() - (255 if is_white else 0)
    is_thing = difference.abs().amax(1) > GROUND_DIFFERENCE  # (N, H, W)
    edges = torch.ones(is_thing.shape[1:], dtype=torch.bool)
    edges[1:-1, 1:-1] = False
    without_ground = (is_thing[:, edges].float().mean(1) > 0.5).float().mean().item()
    if without_ground > 0.5:
        return [f"{without_ground:.0%} of the pictures have no "
                f"{'white' if is_white else 'black'} ground, and generated ones will: for photos "
                "with a background set white_back=False, eval_last_back=True and "
                "scene_radius=None"]  # fmt: skip
    if render.scene_radius is None:
        return []
    reach = (is_thing * distances_from_middle(render)).flatten(1).amax(1)  # (N,)
    outside = (reach > render.scene_radius).float().mean().item()
    if outside <= MAX_UNREACHABLE:
        return []
    needed = math.ceil(100 * reach.max().item()) / 100
    return [f"{outside:.0%} of the pictures show something that generated ones cannot, outside of "
            f"scene_radius={render.scene_radius:g}: set it to {needed:g}"]  # fmt: skip


def distances_from_middle(render: RenderOptions) -> Tensor:
    """Return for each pixel (H, W) how near its ray comes to the origin, in scene units."""
    front = torch.full((1,), math.pi / 2)
    rays = cast_rays(Poses(front, front), render.image_size, render.fov_degrees)
    past = torch.linalg.cross(rays.origins, rays.directions).norm(dim=-1)
    return past.unflatten(1, (render.image_size, render.image_size))[0]
