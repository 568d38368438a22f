"""A plain implementation of the fast parts of this project, a baseline for benchmarks only.

The field: linear, multiply, add, sine, one array after the other, all points colored. The
discriminator: coordinates as two more channels of every image, images in PyTorch's own layout, a
pass of its own for each kind of image, R1 by differentiating the gradient. As the published code.
"""

import torch
from torch import Tensor, nn

from config.stage import OptimizerOptions, Precision, Stage
from discriminators.convolutions import CoordConv
from discriminators.discriminators import PyramidDiscriminator
from generators.generators import ImplicitGenerator3d
from siren.film import Film
from siren.fused.fused_field import JoinedField
from siren.siren import FilmSiren
from training import fused_layers, losses
from training.adversarial import AdversarialGame, Fakes, Scenes, Terms
from training.health import DISCRIMINATOR


class TextbookField(FilmSiren):
    """FilmSiren without fast implementations; repeats each direction for every point."""

    def prepared(self, film: Film) -> JoinedField | None:
        """Return None: nothing is folded."""
        return None

    def forward(
        self,
        points: Tensor,
        directions: Tensor,
        film: Film,
        *,
        prepared: JoinedField | None = None,
        skips_clear: bool = False,
    ) -> Tensor:
        """Do as FilmSiren.forward; colors all points.

        Under autocast FiLM is in half precision, as that of the published code, whose mapping
        network autocast rounds: its multiplications, additions and sines take half the bytes.
        """
        device = points.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            film = Film(film.frequencies.to(half), film.phase_shifts.to(half))
        directions = directions.repeat_interleave(points.shape[1] // directions.shape[1], dim=1)
        *trunk, (color_frequencies, color_phases) = film.layers(self.hidden_dim)
        x = self.encode(points)
        linears = [layer for layer in self.network.modules() if isinstance(layer, nn.Linear)]
        for linear, (frequencies, phases) in zip(linears, trunk, strict=True):
            x = torch.sin(frequencies[:, None] * linear(x) + phases[:, None])
        density = self.final_layer(x) * self.density_scale
        x = self.color_layer_sine.layer(torch.cat([directions, x], dim=-1))
        x = torch.sin(color_frequencies[:, None] * x + color_phases[:, None])
        samples = torch.cat([self.color_layer_linear(x), density], dim=-1)
        return self._as_densities(self.encode(points), samples)


def twin_of(siren: FilmSiren) -> TextbookField:
    """Return a textbook field with the sizes and parameters of siren, on its device."""
    first = siren.mapping_network.network[0]
    assert isinstance(first, nn.Linear)  # for the type checker
    twin = TextbookField(
        z_dim=siren.z_dim,
        hidden_dim=siren.hidden_dim,
        num_layers=len(siren.network),
        mapping_hidden_dim=first.out_features,
        box_side=siren.box_side,
        density_scale=siren.density_scale,
        surface_width=None if siren.surface is None else siren.surface.width,
    )
    twin.load_state_dict(siren.state_dict())
    return twin.to(next(siren.parameters()).device)


class TextbookCoordConv(nn.Module):
    """CoordConv that concatenates the coordinates to the channels of every image."""

    def __init__(self, ours: CoordConv) -> None:
        super().__init__()
        self.conv = ours.conv

    def forward(self, x: Tensor) -> Tensor:
        """Do as CoordConv.forward."""
        count, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height).to(x)[:, None].expand(count, 1, height, width)
        columns = torch.linspace(-1, 1, width).to(x).expand(count, 1, height, width)
        features: Tensor = self.conv(torch.cat([x, rows, columns], dim=1))
        return features


class TextbookGame(AdversarialGame):
    """The training step with the textbook's field, memory layout and discriminator update.

    generator and discriminator get the textbook's field and convolutions.
    """

    def __init__(
        self,
        generator: ImplicitGenerator3d,
        discriminator: PyramidDiscriminator,
        options: OptimizerOptions,
        precision: Precision,
        *,
        seed: int,
    ) -> None:
        generator.siren = twin_of(generator.siren)
        for module in list(discriminator.modules()):
            for name, layer in module.named_children():
                if isinstance(layer, CoordConv):
                    setattr(module, name, TextbookCoordConv(layer))
        super().__init__(generator, discriminator, options, precision, seed=seed)
        discriminator.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    def _layers(self) -> fused_layers.Kinds:
        return fused_layers.PLAIN

    def generate(self, scenes: Scenes, stage: Stage, *, rng: torch.Generator) -> Fakes:
        """Do as AdversarialGame.generate."""
        fakes = super().generate(scenes, stage, rng=rng)
        return fakes._replace(images=fakes.images.contiguous())

    def discriminator_step(self, real: Tensor, fakes: Fakes, stage: Stage) -> Terms:
        """Do as AdversarialGame.discriminator_step."""
        self.discriminator.requires_grad_(True)
        weights = {"d_r1": stage.r1_lambda, "d_r2": stage.r2_lambda}
        if stage.step % stage.r1_interval:
            weights = {}
        images = {"d_r1": real.detach(), "d_r2": fakes.images.detach()}
        images = {k: x.requires_grad_(weights.get(k, 0) > 0) for k, x in images.items()}
        with self.autocast():
            on_real, on_fake = (self.discriminator(x, stage.alpha) for x in images.values())
        kind = losses.LOSSES[stage.gan_loss]
        terms = kind.of_discriminator(on_real.logits, on_fake.logits)
        terms["d_identity"] = losses.identity(
            on_fake, *fakes.scenes, z_lambda=stage.z_lambda, pos_lambda=stage.pos_lambda
        )
        for name, verdict in (("d_r1", on_real), ("d_r2", on_fake)):
            if weights.get(name, 0) > 0:
                square = self._mean_square(verdict.logits, images[name])
                terms[name] = 0.5 * weights[name] * stage.r1_interval * square
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        self._backward(sum(terms.values(), real.new_zeros(())))
        self._update(DISCRIMINATOR, terms, stage)
        return {name: term.detach() for name, term in terms.items()}

    def _mean_square(self, logits: Tensor, images: Tensor) -> Tensor:
        """Return the mean squared norm of the gradients, to be differentiated again."""
        scale = self.scaler.scale(logits.new_ones(())) if self.scaler.is_enabled() else 1.0
        (gradient,) = torch.autograd.grad(logits.sum() * scale, images, create_graph=True)
        return (gradient / scale).flatten(1).square().sum(1).mean()
