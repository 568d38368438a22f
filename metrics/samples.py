"""Images for measuring a generator: image i is a function of the seed and i alone.

So the set does not depend on how it is divided among devices or batches.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from config.curriculum import Curriculum
from generators.cameras import PoseDistribution, Poses, sample_poses
from generators.generators import ImplicitGenerator3d
from generators.sampling import LatentKind, sample_latents, stream
from generators.volumetric_rendering import RenderOptions
from siren.film import Film

STREAM = 0x46494400  # keeps these streams apart from those of training with the same seed


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleOptions:
    """Options of the images of an evaluation.

    mean: center of truncation (1, F), None where psi is 1. is_jittered: draw depths at random
    within their intervals, as in training and in the published evaluation; otherwise rendering is
    deterministic. supersampling: images are rendered at that many times the size, and
    shrunk by averaging, as pictures of a dataset are shrunk.
    """

    seed: int
    poses: PoseDistribution
    latent_kind: LatentKind
    render: RenderOptions
    psi: float = 1.0
    mean: Film | None = None
    is_jittered: bool = False
    supersampling: int = 1

    @staticmethod
    def of(curriculum: Curriculum, render: RenderOptions, *, seed: int) -> "SampleOptions":
        """Return those of images with a curriculum's latents and cameras of evaluations."""
        poses, kind = curriculum.evaluation_poses(), curriculum.settings.z_dist
        return SampleOptions(seed=seed, poses=poses, latent_kind=kind, render=render)


def sample_scene(index: int, z_dim: int, options: SampleOptions) -> tuple[Tensor, Poses]:
    """Draw latent (1, z_dim) and pose (1,) of image index on the CPU: the same on every device."""
    rng = stream(STREAM, options.seed, index)
    z = sample_latents(1, z_dim, kind=options.latent_kind, rng=rng)
    return z, sample_poses(options.poses, 1, rng=rng)


def sample_film(generator: ImplicitGenerator3d, z: Tensor, options: SampleOptions) -> Film:
    """Map a latent (1, z_dim) to its truncated conditioning (1, F)."""
    film = generator.mapping(z)
    return film if options.mean is None else options.mean.lerp(film, options.psi)


@torch.no_grad()
def sample_image(generator: ImplicitGenerator3d, index: int, options: SampleOptions) -> Tensor:
    """Render image index (3, H, W) in [-1, 1]."""
    z, poses = sample_scene(index, generator.z_dim, options)
    film = sample_film(generator, z, options)
    device = film.frequencies.device
    # A second stream for the many draws of depths, on the device.
    rng = stream(STREAM, options.seed + 1, index, device=device) if options.is_jittered else None
    size = options.render.image_size
    large = replace(options.render, image_size=options.supersampling * size)
    return F.avg_pool2d(
        generator.render(film, poses, large, rng=rng).images, options.supersampling
    )[0]
