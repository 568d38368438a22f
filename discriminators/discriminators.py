"""Discriminators: a pyramid of residual blocks, which an image enters at the level of its size.

Legend: B images of H x W pixels, L width of the latent.
Class and parameter names and their order are those of the published checkpoints.
Source: pi-GAN (Chan et al. 2021), section 3.3 and supplement; the coordinate-conditioned strided
family (CCS) and the heads that predict latent and pose come from the published code.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from discriminators.blocks import AdapterBlock, ResidualBlock
from discriminators.linearized import NORMAL_LAYERS, NormalLayers

PUBLISHED_WIDTH = 400  # channels of the widest layers


class Verdict(NamedTuple):
    """Logits (B,), positive for real; predicted latent (B, L), pose (B, 2) [pitch, yaw] or None."""

    logits: Tensor
    latent: Tensor | None = None
    pose: Tensor | None = None

    def split(self, count: int) -> tuple["Verdict", "Verdict"]:
        """Return the verdicts on the first count images and on the others."""
        logits, *heads = self
        return (
            Verdict(logits[:count], *(head if head is None else head[:count] for head in heads)),
            Verdict(logits[count:], *(head if head is None else head[count:] for head in heads)),
        )


class PyramidDiscriminator(nn.Module):
    """Residual blocks that halve an image down to 2 x 2; it enters at the level of its size.

    Args:
        latent_dim: width of the latent that the encoder heads predict.
        width: the most channels of a layer, or the channels of each level from 2 x 2 pixels up, of
            which larger levels have the last; None takes the published width.
    """

    widths: tuple[int, ...]
    has_coordinates = True
    is_strided = False
    predicts_identity = False
    has_pose_layer = False

    def __init__(self, *, latent_dim: int = 256, width: int | Sequence[int] | None = None) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.level_widths = widths = self.widths_of(width)
        self.layers = nn.ModuleList(
            ResidualBlock(
                before,
                after,
                has_coordinates=self.has_coordinates,
                is_strided=self.is_strided,
            )
            for before, after in zip(widths[:-1], widths[1:], strict=True)
        )
        self.fromRGB = nn.ModuleList(AdapterBlock(width) for width in widths)
        outputs = 1 + (latent_dim + 2 if self.predicts_identity else 0)
        self.final_layer = nn.Conv2d(widths[-1], outputs, 2)
        if self.has_pose_layer:
            self.pose_layer = nn.Linear(2, widths[-1])

    @classmethod
    def widths_of(cls, width: int | Sequence[int] | None) -> list[int]:
        """Return the channels of the levels, from the largest image size down to 2 pixels."""
        if width is None or isinstance(width, int):
            return [min(published, width or PUBLISHED_WIDTH) for published in cls.widths]
        upwards = [width[min(level, len(width) - 1)] for level in range(len(cls.widths))]
        return upwards[::-1]

    @classmethod
    def image_sizes(cls) -> tuple[int, ...]:
        """Return the image sizes that have a level, in pixels, ascending."""
        return tuple(2**level for level in range(1, len(cls.widths) + 1))

    def forward(
        self, images: Tensor, alpha: float, layers: NormalLayers = NORMAL_LAYERS
    ) -> Verdict:
        """Return the verdicts on images; arguments and errors are those of outputs."""
        return self._verdict(self.outputs(images, alpha, layers))

    def outputs(self, images: Tensor, alpha: float, layers: NormalLayers = NORMAL_LAYERS) -> Tensor:
        """Return the final layer's numbers (B, outputs).

        Args:
            images: (B, 3, size, size) in [-1, 1], size one of image_sizes().
            alpha: weight in [0, 1] of the newest level; the rest comes from the half-size image.
            layers: applies the convolutions and rectifiers.

        Raises:
            ValueError: there is no level for the size.
        """
        size = images.shape[-1]
        if size not in self.image_sizes():
            raise ValueError(f"no level for images of {size} px; have {self.image_sizes()}")
        start = len(self.layers) + 1 - (size.bit_length() - 1)  # the last level sees 2 x 2 pixels
        x: Tensor = self.fromRGB[start](images, layers)
        for level in range(start, len(self.layers)):
            if level == start + 1 and alpha < 1:
                halved = F.interpolate(images, scale_factor=0.5, mode="nearest")
                x = alpha * x + (1 - alpha) * self.fromRGB[level](halved, layers)
            x = self.layers[level](x, layers)
        return layers.convolve(self.final_layer, x).flatten(1)

    def _verdict(self, outputs: Tensor) -> Verdict:
        outputs = outputs.float() if outputs.dtype.itemsize < 4 else outputs
        if not self.predicts_identity:
            return Verdict(outputs[:, 0])
        logits, latent, pose = outputs.split([1, self.latent_dim, 2], dim=1)
        return Verdict(logits[:, 0], latent, pose)


class ProgressiveDiscriminator(PyramidDiscriminator):
    """The paper's discriminator: average-pooled CoordConv blocks, 512 px down to 2."""

    widths = (16, 32, 64, 128, 256, 400, 400, 400, 400)


class ProgressiveEncoderDiscriminator(ProgressiveDiscriminator):
    """ProgressiveDiscriminator that also predicts the latent and the camera pose."""

    predicts_identity = True


class StridedDiscriminator(PyramidDiscriminator):
    """Strided blocks without coordinate channels, 256 px down to 2."""

    widths = (32, 64, 128, 256, 400, 400, 400, 400)
    has_coordinates = False
    is_strided = True
    has_pose_layer = True  # nothing uses it; published checkpoints have it


class CCSDiscriminator(StridedDiscriminator):
    """StridedDiscriminator whose convolutions see pixel coordinates."""

    has_coordinates = True


class CCSEncoderDiscriminator(CCSDiscriminator):
    """CCSDiscriminator that also predicts the latent and the camera pose."""

    predicts_identity = True
    has_pose_layer = False


DISCRIMINATORS: dict[str, type[PyramidDiscriminator]] = {
    cls.__name__: cls
    for cls in (
        ProgressiveDiscriminator,
        ProgressiveEncoderDiscriminator,
        StridedDiscriminator,
        CCSDiscriminator,
        CCSEncoderDiscriminator,
    )
}
