"""Guess a photo's object and camera in one step, by a network trained on the generator's renders.

The network is a discriminator's trunk. It predicts the FiLM conditioning in the basis of its
principal components over latents, the camera's pose, and the angle of view.

Legend: B images, K components, F FiLM features.
Source: an encoder that learns from the generator's own renders, as in Pix2NeRF (Cai et al. 2022).
"""

import math

import torch
from torch import Tensor, nn

from discriminators.discriminators import PyramidDiscriminator
from generators.cameras import POLE_MARGIN, Poses
from generators.generators import ImplicitGenerator3d
from generators.inversion import Guess
from generators.sampling import LatentKind, sample_latents
from siren.film import Film

BASIS_LATENTS = 4096  # whose conditioning gives the components
MAX_ZOOM = 0.2  # largest |log(angle of view / curriculum's)| that is learned
CAMERA_OUTPUTS = 4  # pitch less the middle one, cosine and sine of yaw, logarithm of the zoom


class Encoder(nn.Module):
    """Predict conditioning and cameras from images of image_size pixels per side.

    trunk is a discriminator with a level for image_size, whose final layer is replaced;
    num_features is F of the generator, num_components K.
    """

    mean: Tensor  # (2F,) conditioning: frequencies, then phase shifts
    components: Tensor  # (K, 2F) change of the conditioning by one standard deviation
    middle: Tensor  # (2,) pitch in radians and angle of view in degrees of the usual camera

    def __init__(
        self,
        trunk: PyramidDiscriminator,
        *,
        num_features: int,
        num_components: int,
        image_size: int,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        outputs = num_components + CAMERA_OUTPUTS
        trunk.final_layer = nn.Conv2d(trunk.final_layer.in_channels, outputs, 2)
        self.trunk = trunk
        self.register_buffer("mean", torch.zeros(2 * num_features))
        self.register_buffer("components", torch.zeros(num_components, 2 * num_features))
        self.register_buffer("middle", torch.zeros(2))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return coordinates (B, K) in standard deviations, and cameras (B, CAMERA_OUTPUTS)."""
        outputs = self.trunk.outputs(images, 1.0)
        return outputs[:, CAMERA_OUTPUTS:], outputs[:, :CAMERA_OUTPUTS]

    def spread(self) -> Tensor:
        """Return the standard deviations (2F,) of the conditioning over latents."""
        return self.components.square().sum(0).sqrt().clamp(min=1e-6)

    def film(self, coordinates: Tensor, offsets: Tensor | float = 0.0) -> Film:
        """Return the conditioning of coordinates (B, K), plus offsets (B, 2F)."""
        return Film(*(self.mean + coordinates @ self.components + offsets).chunk(2, dim=1))

    def coordinates(self, film: Film) -> Tensor:
        """Return the coordinates (B, K) of conditioning: the inverse of film()."""
        features = torch.cat([film.frequencies, film.phase_shifts], dim=1)
        return (features - self.mean) @ torch.linalg.pinv(self.components)

    def guess(self, images: Tensor) -> tuple[Tensor, Guess]:
        """Guess coordinates (B, K), objects and cameras of images (B, 3, H, W).

        Images are in [-1, 1], and H = W = image_size.
        """
        coordinates, cameras = self(images)
        pitch, cosine, sine, log_zoom = cameras.unbind(1)
        pitch = (self.middle[0] + pitch).clamp(POLE_MARGIN, math.pi - POLE_MARGIN)
        fov = self.middle[1] * log_zoom.clamp(-MAX_ZOOM, MAX_ZOOM).exp()
        poses = Poses(pitch, torch.atan2(sine, cosine))
        return coordinates, Guess(self.film(coordinates), poses, fov)


@torch.no_grad()
def fit_basis(
    encoder: Encoder, generator: ImplicitGenerator3d, kind: LatentKind, rng: torch.Generator
) -> None:
    """Set encoder's mean and components to those of the conditioning of random latents.

    Components are principal directions of the features divided by their standard deviations.
    """
    latents = sample_latents(BASIS_LATENTS, generator.z_dim, kind=kind, rng=rng)
    film = generator.mapping(latents)
    features = torch.cat([film.frequencies, film.phase_shifts], dim=1)
    scale = features.std(0).clamp(min=1e-6)
    encoder.mean.copy_(features.mean(0))
    _, sizes, directions = torch.linalg.svd((features - encoder.mean) / scale, full_matrices=False)
    count = len(encoder.components)
    deviations = sizes[:count, None] / math.sqrt(len(features) - 1)
    encoder.components.copy_(directions[:count] * deviations * scale)
