"""The plain evaluation of the field: linear, multiply, add, sine, one array after the other.

A baseline for benchmarks only, shaped like the published code; nothing else may import it.
"""

import torch
from torch import Tensor, nn

from siren.film import Film
from siren.siren import FilmSiren


class TextbookField(FilmSiren):
    """FilmSiren that never takes a fast path and repeats each direction for every point."""

    def forward(
        self, points: Tensor, directions: Tensor, film: Film, *, skips_clear: bool = False
    ) -> Tensor:
        """As FilmSiren.forward; colors all points."""
        directions = directions.repeat_interleave(points.shape[1] // directions.shape[1], dim=1)
        *trunk, (color_frequencies, color_phases) = film.layers(self.hidden_dim)
        x = self.encode(points)
        linears = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)]
        for linear, (frequencies, phases) in zip(linears, trunk, strict=True):
            x = torch.sin(frequencies[:, None] * linear(x) + phases[:, None])
        density = self.final_layer(x) * self.density_scale
        x = self.color_layer_sine.layer(torch.cat([directions, x], dim=-1))
        x = torch.sin(color_frequencies[:, None] * x + color_phases[:, None])
        return torch.cat([self.color_layer_linear(x), density], dim=-1)


def twin_of(siren: FilmSiren) -> TextbookField:
    """A textbook field with the sizes and parameters of siren, on the CPU."""
    first = siren.mapping_network.network[0]
    assert isinstance(first, nn.Linear)  # for the type checker
    twin = TextbookField(
        z_dim=siren.z_dim,
        hidden_dim=siren.hidden_dim,
        num_layers=len(siren.network),
        mapping_hidden_dim=first.out_features,
        box_side=siren.box_side,
        density_scale=siren.density_scale,
    )
    twin.load_state_dict(siren.state_dict())
    return twin
