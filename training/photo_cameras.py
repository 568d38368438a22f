"""Compare the cameras of photos, as a critic guesses them, with those of the curriculum.

Legend: N images.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from config.curriculum import Curriculum
from config.stage import Stage
from generators.cameras import PoseDistribution
from generators.sampling import Purpose, stream
from metrics import camera_search, found_cameras
from metrics.pose_response import fit_response, true_moments
from training.adversarial import AdversarialGame
from training.collapse import Axis

NUM_IMAGES = 256  # photos, and as many generated images
LEARN_SIZE = 16  # pixels per side
LEARN_OFTEN, LEARN_SELDOM = 100, 1000  # steps between searches up to step 1000, and later
ALLOWED = 1 / 3  # of the curriculum's spread
AXES: tuple[Axis, ...] = ("pitch", "yaw")
KEYS = {"pitch": ("v_mean", "v_stddev"), "yaw": ("h_mean", "h_stddev")}
SIDES = {"pitch": ("lower", "higher"), "yaw": ("the left", "the right")}


class Seen(NamedTuple):
    """Mean and standard deviation of an angle, radians: of the photos and of the curriculum."""

    mean: float
    spread: float
    curriculum_mean: float
    curriculum_spread: float


def learns_at(step: int) -> bool:
    """Return whether cameras are searched after step: often while shapes still form."""
    return step % (LEARN_OFTEN if step <= LEARN_SELDOM else LEARN_SELDOM) == 0


def learned(
    game: AdversarialGame, curriculum: Curriculum, photos: Tensor, step: int
) -> PoseDistribution:
    """Return the cameras for the steps after step, nearer to those of photos (N, 3, H, W)."""
    options = curriculum.evaluation_render(step - 1)
    size = min(LEARN_SIZE, options.image_size)
    poses = curriculum.at(step - 1).poses
    found = camera_search.search(
        game.averages[0].averaged(game.generator),
        adaptive_avg_pool2d(photos, size),
        poses,
        replace(options, image_size=size),
        curriculum.settings.z_dist,
        rng=stream(game.seed, 0, step, Purpose.CAMERAS, 2),
        effort=camera_search.QUICK if step < LEARN_SELDOM else camera_search.WHOLE,
    )
    return found_cameras.step_towards(found, poses)


@torch.no_grad()
def compare(
    game: AdversarialGame, stage: Stage, photos: Tensor, *, rng: torch.Generator
) -> dict[Axis, Seen]:
    """Return what the critic sees of the photos (N, 3, H, W), by axis.

    Both sorts of images are judged as in a training step, and nothing is changed. An axis is left
    out where the guesses say too little of the generated images' true angle, and all of them where
    the critic guesses no poses or does not learn to. rng is a CPU stream.
    """
    if stage.pos_lambda == 0:
        return {}
    guesses, angles = [], []
    samples = stream(game.seed, 0, stage.step, Purpose.CAMERAS, 1, device=game.device)
    for photo in photos.split(-(-stage.batch_size // stage.batch_split)):
        scenes = game.draw_scenes(len(photo), stage, rng=rng)
        fakes = game.generate(scenes, stage, rng=samples)
        verdict = game.judge(torch.cat([photo, fakes.images]), stage)
        if verdict.pose is None:
            return {}
        guesses.append(verdict.pose.unflatten(0, (2, len(photo))).cpu())
        angles.append(torch.stack(scenes.poses, dim=-1))
    on_photos, on_fakes = torch.cat(guesses, dim=1)  # (N, 2) each
    found = {}
    for i, axis in enumerate(AXES):
        response = fit_response(on_fakes[:, i], torch.cat(angles)[:, i])
        if response.is_clear:
            own = stage.poses.moments()[i]
            found[axis] = Seen(*true_moments(on_photos[:, i], response), *own)
    return found


def figures(found: Mapping[Axis, Seen]) -> dict[str, float]:
    """Return what is logged."""
    return {
        f"{axis}_{name}_{of}": getattr(seen, prefix + name)
        for axis, seen in found.items()
        for of, prefix in (("photos", ""), ("curriculum", "curriculum_"))
        for name in ("mean", "spread")
    }


def differences(axis: Axis, seen: Seen, poses: PoseDistribution) -> dict[str, str | None]:
    """Return what is wrong with the curriculum in an axis by direction, None where nothing is.

    Spreads are stated as the curriculum's key has them: half-widths where the kind is uniform.
    """
    allowed = ALLOWED * seen.curriculum_spread
    mean_key, spread_key = KEYS[axis]
    stated = poses.pitch_spread if axis == "pitch" else poses.yaw_spread
    own_mean = poses.pitch_mean if axis == "pitch" else poses.yaw_mean
    wide = stated * seen.spread / seen.curriculum_spread
    offset = seen.mean - seen.curriculum_mean
    side = SIDES[axis][offset < 0]
    width = (f"your photos look {wide:.2g} wide in {axis}, the curriculum says {stated:.2g} "
             f"({spread_key})")  # fmt: skip
    middle = (
        f"your photos look from {abs(offset):.2g} {'further to ' if axis == 'yaw' else ''}{side} "
        f"than the curriculum's middle ({mean_key} {own_mean:.4g})"
    )
    return {
        f"{axis} wider": width if seen.spread - seen.curriculum_spread > allowed else None,
        f"{axis} narrower": width if seen.curriculum_spread - seen.spread > allowed else None,
        f"{axis} more": middle if offset > allowed else None,
        f"{axis} less": middle if -offset > allowed else None,
    }
