"""Train an encoder on renders of its generator, whose objects and cameras are known.

The renders are disturbed so that photos are no surprise: another background, tint and brightness,
an object beside the middle, noise. A render is seen several times, each time disturbed otherwise.

Legend: B images, K components, N renders in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from generators.cameras import PoseDistribution, Poses, sample_poses
from generators.encoder import MAX_ZOOM, Encoder
from generators.generators import ImplicitGenerator3d
from generators.inversion import Guess, render_guess
from generators.sampling import LatentKind, sample_latents
from generators.volumetric_rendering import RenderOptions

POSE_WEIGHT, ZOOM_WEIGHT = 3.0, 10.0  # of their squared errors, that of coordinates has weight 1
BACKGROUNDS, TINTS, SHIFTS = 0.3, 0.5, 0.5  # shares of images that are disturbed so
MAX_TINT = 0.1  # of contrast, and of brightness in [-1, 1], per channel
MAX_SHIFT = 0.06  # of half of the picture's side
RUNNING_MEAN = 0.98  # weight of the earlier steps in the reported losses
MAX_NOISE = 0.05  # standard deviation, of colors in [-1, 1]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderOptions:
    """Effort of the training: renders_per_step are new, batch_size are drawn from the last ones."""

    steps: int = 1500
    renders_per_step: int = 32
    batch_size: int = 64
    memory: int = 8192
    learning_rate: float = 1e-3


@dataclass(frozen=True, eq=False)
class Examples:
    """images (N, 3, H, W), opacities (N, H, W), coordinates (N, K), cameras (N, 4) to predict."""

    images: Tensor
    opacities: Tensor
    coordinates: Tensor
    cameras: Tensor

    def parts(self) -> list[Tensor]:
        """Return the four tensors."""
        return [self.images, self.opacities, self.coordinates, self.cameras]

    def __getitem__(self, index: Tensor | slice) -> "Examples":
        return Examples(*(part[index] for part in self.parts()))

    def followed_by(self, others: "Examples", limit: int) -> "Examples":
        """Return both, without the oldest beyond limit."""
        both = zip(self.parts(), others.parts(), strict=True)
        return Examples(*(torch.cat(pair)[-limit:] for pair in both))


@torch.no_grad()
def render_examples(
    encoder: Encoder,
    generator: ImplicitGenerator3d,
    count: int,
    poses: PoseDistribution,
    options: RenderOptions,
    kind: LatentKind,
    rng: torch.Generator,
) -> Examples:
    """Render random objects from random cameras, with angles of view within MAX_ZOOM."""
    device = encoder.mean.device
    film = generator.mapping(sample_latents(count, generator.z_dim, kind=kind, rng=rng))
    pitch, yaw = (angle.to(device) for angle in sample_poses(poses, count, rng=rng))
    log_zoom = MAX_ZOOM * _symmetric((count,), rng).to(device)
    guess = Guess(film, Poses(pitch, yaw), options.fov_degrees * log_zoom.exp())
    images, opacities = render_guess(generator, guess, options, encoder.image_size)
    cameras = torch.stack([pitch - encoder.middle[0], yaw.cos(), yaw.sin(), log_zoom], dim=1)
    return Examples(images, opacities, encoder.coordinates(film), cameras)


def _symmetric(shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Draw numbers in [-1, 1] on the CPU."""
    return 2 * torch.rand(shape, generator=rng) - 1


def disturbed(examples: Examples, options: RenderOptions, rng: torch.Generator) -> Tensor:
    """Return the images (B, 3, H, W), each disturbed at random, in [-1, 1]."""
    images, count, device = examples.images, len(examples.images), examples.images.device

    def draw(*shape: int) -> Tensor:
        return _symmetric((count, *shape), rng).to(device)

    def is_among(share: float) -> Tensor:
        return draw(1, 1, 1).abs() < share

    if options.background != "last_sample":
        own = 1.0 if options.background == "white" else -1.0
        behind = (1 - examples.opacities[:, None]) * (draw(3, 1, 1) - own)
        images = images + behind * is_among(BACKGROUNDS)
    tinted = images * (1 + MAX_TINT * draw(3, 1, 1)) + MAX_TINT * draw(3, 1, 1)
    images = torch.where(is_among(TINTS), tinted, images)
    moves = torch.eye(2, 3, device=device).repeat(count, 1, 1)
    moves[:, :, 2] = MAX_SHIFT * draw(2) * is_among(SHIFTS)[:, 0, :, 0]
    places = F.affine_grid(moves, list(images.shape), align_corners=False)
    images = F.grid_sample(images, places, padding_mode="border", align_corners=False)
    noise = torch.randn(images.shape, generator=rng).to(device)
    return (images + MAX_NOISE * draw(1, 1, 1) * noise).clamp(-1, 1)


def encoder_losses(encoder: Encoder, images: Tensor, truth: Examples) -> dict[str, Tensor]:
    """Return the mean squared errors of coordinates, pose and zoom for images (B, 3, H, W).

    Coordinates count by their share of the conditioning's variance, yaw by the sine of pitch: near
    the poles it hardly changes the view.
    """
    coordinates, cameras = encoder(images)
    share = (encoder.components / encoder.spread()).square().mean(1)  # (K,), adds up to 1
    errors = (cameras - truth.cameras).square()
    sine = (encoder.middle[0] + truth.cameras[:, 0]).sin()
    return {
        "object": ((coordinates - truth.coordinates).square() * share).sum(1).mean(),
        "pose": (errors[:, 0] + sine.square() * errors[:, 1:3].sum(1)).mean(),
        "zoom": errors[:, 3].mean(),
    }


def train_encoder(
    encoder: Encoder,
    generator: ImplicitGenerator3d,
    poses: PoseDistribution,
    options: RenderOptions,
    training: EncoderOptions,
    *,
    kind: LatentKind,
    rng: torch.Generator,
    report: Callable[[int, dict[str, float]], None],
) -> None:
    """Train encoder, whose basis is set, on the device of the frozen generator.

    poses and options are those of the renders, kind that of the latents, rng a CPU stream. report
    is called after each step with the number of steps and running means of the losses.
    """
    render = partial(
        render_examples, encoder, generator, poses=poses, options=options, kind=kind, rng=rng
    )
    optimizer = torch.optim.Adam(encoder.parameters(), training.learning_rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, training.learning_rate, total_steps=training.steps, pct_start=0.1
    )
    known, means = render(training.batch_size), dict[str, float]()
    for step in range(training.steps):
        known = known.followed_by(render(training.renders_per_step), training.memory)
        picks = torch.randint(len(known.images), (training.batch_size,), generator=rng)
        batch = known[picks.to(known.images.device)]
        losses = encoder_losses(encoder, disturbed(batch, options, rng), batch)
        total = losses["object"] + POSE_WEIGHT * losses["pose"] + ZOOM_WEIGHT * losses["zoom"]
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        schedule.step()
        for name, loss in losses.items():
            earlier = means.get(name, float(loss.detach()))
            means[name] = RUNNING_MEAN * earlier + (1 - RUNNING_MEAN) * float(loss.detach())
        report(step + 1, means)
