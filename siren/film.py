"""FiLM conditioning of a SIREN: the mapping network and the modulated sine layer.

Legend: B latents, P points, H hidden width, F = H * (number of FiLM layers) features.
Source: pi-GAN (Chan et al. 2021), section 3.1; FiLM (Perez et al. 2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from siren.tf32 import float32_products

FREQUENCY_SCALE, FREQUENCY_SHIFT = 15.0, 30.0  # raw mapping output to frequency, as published
LEAKY_SLOPE = 0.2


@dataclass(frozen=True, eq=False)
class Film:
    """FiLM conditioning of B fields: raw frequencies and phase shifts of the mapping, (B, F).

    weight_changes: (B, W), added to the FiLM layers' weights for these objects alone, layer after
    layer; None adds nothing. Objects that were tuned to a photo have them.
    """

    frequencies: Tensor
    phase_shifts: Tensor
    weight_changes: Tensor | None = None

    def lerp(self, end: "Film", weight: float) -> "Film":
        """Interpolate from self (0) to end (1); mean.lerp(film, psi) is the truncation trick."""
        both = _weight_changes([self, end])
        return Film(
            torch.lerp(self.frequencies, end.frequencies, weight),
            torch.lerp(self.phase_shifts, end.phase_shifts, weight),
            None if both is None else torch.lerp(both[0], both[1], weight),
        )

    def __getitem__(self, index: slice | Tensor) -> "Film":
        changes = self.weight_changes
        return Film(
            self.frequencies[index],
            self.phase_shifts[index],
            None if changes is None else changes[index],
        )

    def __len__(self) -> int:
        return len(self.frequencies)

    def by_layer(self, width: int) -> tuple[Tensor, Tensor]:
        """Return frequencies and phase shifts (B, layers, width), scaled for the sine."""
        frequencies = self.frequencies * FREQUENCY_SCALE + FREQUENCY_SHIFT
        return frequencies.unflatten(-1, (-1, width)), self.phase_shifts.unflatten(-1, (-1, width))

    def layers(self, width: int) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's frequencies and phase shifts (B, width), scaled for the sine."""
        return list(zip(*(part.unbind(1) for part in self.by_layer(width)), strict=True))


def _weight_changes(films: Sequence[Film]) -> list[Tensor] | None:
    """Return the changes of each of films, zeros where only others have some; None if none has."""
    known = [film.weight_changes for film in films if film.weight_changes is not None]
    if not known:
        return None
    return [
        known[0].new_zeros(len(film), known[0].shape[1])
        if film.weight_changes is None
        else film.weight_changes
        for film in films
    ]


def concatenated(films: Sequence[Film]) -> Film:
    """Return the conditioning of the objects of all films, in their order."""
    changes = _weight_changes(films)
    return Film(
        torch.cat([film.frequencies for film in films]),
        torch.cat([film.phase_shifts for film in films]),
        None if changes is None else torch.cat(changes),
    )


def at_least_float32(x: Tensor) -> Tensor:
    """Return x in float32 if autocast lowered its precision, else x itself."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class FiLMLayer(nn.Module):
    """sin(f * (W x + b) + p) with one frequency f and phase p per feature and sample."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.layer = nn.Linear(input_dim, hidden_dim)

    def forward(
        self, x: Tensor, frequencies: Tensor, phase_shifts: Tensor, change: Tensor | None = None
    ) -> Tensor:
        """Return features (B, P, H) of x (B, P, input_dim); frequencies, phases (B, H).

        change (B, H, input_dim) is added to the weight of each object. The phase is float32 even
        under autocast: an error of the phase is an error of the sine.
        """
        linear = at_least_float32(self.layer(x))
        if change is not None:
            linear = linear + at_least_float32(x @ change.mT)
        return torch.sin(frequencies[:, None] * linear + phase_shifts[:, None])


class CustomMappingNetwork(nn.Module):
    """Map z (B, z_dim) to raw FiLM parameters by three hidden layers with LeakyReLU 0.2."""

    def __init__(self, z_dim: int, hidden_dim: int, num_features: int) -> None:
        super().__init__()
        widths = [z_dim, hidden_dim, hidden_dim, hidden_dim]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.Linear(width_in, width_out), nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        self.network = nn.Sequential(*layers, nn.Linear(hidden_dim, 2 * num_features))
        linears = [layer for layer in self.network if isinstance(layer, nn.Linear)]
        for linear in linears:
            nn.init.kaiming_normal_(linear.weight, a=LEAKY_SLOPE)
        with torch.no_grad():  # small modulation: at the start all latents give a similar object
            linears[-1].weight.mul_(0.25)

    def forward(self, z: Tensor) -> Film:
        """Return the FiLM parameters of z; the outputs are frequencies, then phase shifts.

        Float32 even under autocast: rounding this small network saves no time, and caused more than
        half of the error of a field in bfloat16.
        """
        exact = float32_products(in_tf32=False)
        with torch.autocast(z.device.type, enabled=False), exact:
            frequencies, phase_shifts = self.network(z).chunk(2, dim=-1)
        return Film(frequencies, phase_shifts)
