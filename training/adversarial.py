"""A training step: one discriminator update and one generator update.

Legend: B images per process, L width of the latent.
Source: pi-GAN (Chan et al. 2021), section 3.3.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.stage import EMA_DECAYS, OptimizerOptions, Precision, Stage, generator_groups
from discriminators.discriminators import PyramidDiscriminator, Verdict
from discriminators.linearized import NormalLayers
from generators import volumetric_rendering
from generators.cameras import Poses, moved, sample_poses
from generators.generators import ImplicitGenerator3d
from generators.sampling import Purpose, sample_latents, stream
from siren.fused import fused_field
from siren.tf32 import float32_products
from training import fused_layers, losses
from training.augmentation import Augment, Augmentation, unchanged
from training.ema import ExponentialMovingAverage
from training.halves import converted
from training.health import DISCRIMINATOR, GENERATOR, Health, poison
from training.penalty import Critic, Observed, observe, stand_ins

SLOPE_POINTS = 64  # per object, at which the slope of its distance is measured
# Shares of the width of what cameras see: how far apart points are whose normals are compared, and
# how far from the surface points may be that are moved onto it.
NEIGHBOR, NEAR = 1 / 50, 1 / 9
INITIAL_LOSS_SCALE = 2.0**15
# The gradient of R1 starts with its scale itself, and float16 ends at 65,504. It passes all layers
# of the discriminator, so its scale leaves room for them to enlarge it 64 times.
MAX_R1_SCALE = 2.0**10

Terms = dict[str, Tensor]


class Scenes(NamedTuple):
    """Inputs of the generator: latents (B, L) on its device, and B camera poses on the CPU."""

    latents: Tensor
    poses: Poses


class Fakes(NamedTuple):
    """Generated images (B, 3, H, W) in [-1, 1], their opacities (B, H, W) and their scenes."""

    images: Tensor
    opacities: Tensor
    scenes: Scenes


def build_optimizer(
    groups: Sequence[tuple[Sequence[nn.Parameter], float]], options: OptimizerOptions
) -> torch.optim.Adam:
    """Adam over groups of (parameters, share of the learning rate); rates are set at every step."""
    device = groups[0][0][0].device
    return torch.optim.Adam(
        [{"params": list(parameters), "rate_share": share} for parameters, share in groups],
        lr=0.0,
        betas=(float(options.betas[0]), float(options.betas[1])),
        weight_decay=options.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )


class AdversarialGame:
    """Both networks with their optimizers and averages, and the training step.

    Both networks are on the device they train on. precision is that of the networks: rendering is
    always float32. seed is that of every random stream, rank this process among those that train
    together, and synchronize replaces tensors by their mean over the processes, in place.
    """

    def __init__(
        self,
        generator: ImplicitGenerator3d,
        discriminator: PyramidDiscriminator,
        optimizer_options: OptimizerOptions,
        precision: Precision,
        *,
        seed: int,
        rank: int = 0,
        synchronize: Callable[[Sequence[Tensor]], None] | None = None,
    ) -> None:
        self.generator = generator
        # The fastest layout for its convolutions, on the CPU as on CUDA.
        self.discriminator = discriminator.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = generator.device
        self.precision = precision
        generator.field_dtype = precision.autocast_dtype  # of previews and FID as well
        self.seed, self.rank = seed, rank
        self.synchronize = synchronize
        self.augmentation: Augmentation | None = None  # of what the discriminator sees
        self.generator_optimizer = build_optimizer(
            generator_groups(generator, has_slow_mapping=optimizer_options.has_slow_mapping),
            optimizer_options,
        )
        self.discriminator_optimizer = build_optimizer(
            [(list(discriminator.parameters()), 1.0)], optimizer_options
        )
        self.averages = [
            ExponentialMovingAverage(generator.parameters(), decay) for decay in EMA_DECAYS
        ]
        # On CUDA the scaler also skips non-finite updates without waiting for the device, so it is
        # used even where the scale stays 1.
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            init_scale=INITIAL_LOSS_SCALE if precision.is_scaled else 1.0,
            enabled=self.device.type == "cuda",
        )
        self.health = Health.fresh(self.device)
        self._copies: list[Tensor] = []  # of the discriminator before this step

    def tensors(self) -> list[Tensor]:
        """Return parameters of both networks and their averages, which all processes share."""
        networks = [*self.generator.parameters(), *self.discriminator.parameters()]
        averages = [value for average in self.averages for value in average.shadow]
        return [parameter.detach() for parameter in networks] + averages

    def field_path(self) -> str:
        """Return the name of the field's implementation that this training uses."""
        with self.autocast():
            siren = self.generator.siren
            return fused_field.path_name(self.device, siren.hidden_dim, siren.num_inputs)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of the networks."""
        dtype = self.precision.autocast_dtype
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def step(self, real: Tensor, stage: Stage, held_out: Tensor | None = None) -> Terms:
        """Update both networks and the averages; if it raises, none of them is changed.

        Args:
            real: (B, 3, H, W) in [-1, 1], on the device.
            stage: the curriculum at this step.
            held_out: reals (N, 3, H, W) that take no part, to measure overfitting; None does not.

        Returns:
            The loss terms by name, detached and on the device: reading one waits for it.
        """
        is_half = self.precision.autocast_dtype is not None
        with self._whole_or_undone(), float32_products(in_tf32=is_half):
            return self._step(real, stage, held_out)

    def _step(self, real: Tensor, stage: Stage, held_out: Tensor | None) -> Terms:
        key = (self.seed, self.rank, stage.step)
        scene_rng = stream(*key, Purpose.SCENES)
        sample_rng = stream(*key, Purpose.SAMPLES, device=self.device)
        self._set_rates(stage)
        self.generator.train()
        self.discriminator.train()
        scenes = self.draw_scenes(len(real), stage, rng=scene_rng)
        with torch.set_grad_enabled(stage.shares_fakes):
            fakes = self.generate(scenes, stage, rng=sample_rng)
        shared = fakes if stage.shares_fakes else None
        fakes = fakes._replace(images=fakes.images.detach())
        augment: Augment = unchanged
        if self.augmentation is not None:
            augment = self.augmentation.of_step(*key)
            real, images = augment(torch.cat([real, fakes.images])).split(len(real))
            fakes = fakes._replace(images=images)
        means = self._mean_logits(real, fakes.images, held_out, augment, stage)
        terms = self.discriminator_step(real, fakes, stage)
        if shared is None:
            scenes = self.draw_scenes(stage.batch_size, stage, rng=scene_rng)
        terms |= self.generator_step(
            real, scenes, stage, rng=sample_rng, augment=augment, shared=shared
        )
        if self.augmentation is not None:
            terms["augment_probability"] = self.augmentation.probability.clone()
            terms |= {} if means is None else self.augmentation.adapt(*means)
        self.scaler.update(None if self.precision.is_scaled else 1.0)
        for average in self.averages:
            average.update(self.generator.parameters())
        return terms

    @contextlib.contextmanager
    def _whole_or_undone(self) -> Iterator[None]:
        """Restore the discriminator if the generator's update fails, as when a process is lost.

        The result is the state before the step, which can be saved. The generator changes last and
        cannot fail half-way. In a single process nothing fails, and nothing is copied.
        """
        if self.synchronize is None:
            yield
            return
        moments = self.discriminator_optimizer.state
        counts = [count.clone() for count in self.health]
        changing = [p.detach() for p in self.discriminator.parameters()]
        changing += [moment for of_one in moments.values() for moment in of_one.values()]
        if [copy.shape for copy in self._copies] == [tensor.shape for tensor in changing]:
            torch._foreach_copy_(self._copies, changing)  # one dtype, or it takes the slow path
        else:
            self._copies = [tensor.clone() for tensor in changing]
        known = set(moments)
        try:
            yield
        except Exception:
            torch._foreach_copy_(changing, self._copies)
            for count, before in zip(self.health, counts, strict=True):
                count.copy_(before)
            for parameter in moments.keys() - known:  # the optimizer met it in this step
                del moments[parameter]
            raise

    def draw_scenes(self, count: int, stage: Stage, *, rng: torch.Generator) -> Scenes:
        """Draw latents and poses of count images on the CPU; move the latents to the device."""
        latents = sample_latents(count, self.generator.z_dim, kind=stage.latent_kind, rng=rng)
        poses = sample_poses(stage.poses, count, rng=rng)
        return Scenes(moved(latents, self.device), poses)

    def generate(self, scenes: Scenes, stage: Stage, *, rng: torch.Generator) -> Fakes:
        """Render scenes."""
        with self.autocast():
            film = self.generator.mapping(scenes.latents)
            view = self.generator.render(film, scenes.poses, stage.render, rng=rng)
        images = view.images.contiguous(memory_format=torch.channels_last)
        return Fakes(images, view.opacities, scenes)

    @torch.no_grad()
    def _mean_logits(
        self, real: Tensor, fake: Tensor, held_out: Tensor | None, augment: Augment, stage: Stage
    ) -> Tensor | None:
        """Return mean logits (3,) of all processes: of reals, fakes, and reals held out."""
        if held_out is None:
            return None
        seen, unseen = self._judge(
            self._in_precision(), torch.cat([real, fake]), augment(held_out), stage
        )
        parts = (*seen.logits.split([len(real), len(fake)]), unseen.logits)
        means = torch.stack([logits.mean() for logits in parts])
        if self.synchronize is not None:
            self.synchronize([means])
        return means

    def discriminator_step(self, real: Tensor, fakes: Fakes, stage: Stage) -> Terms:
        """Update the discriminator on real (B, 3, H, W) and on fakes; returns its terms."""
        self.discriminator.requires_grad_(True)
        discriminator = self._in_precision()
        has_penalty = stage.r1_lambda + stage.r2_lambda > 0 and stage.step % stage.r1_interval == 0
        if not has_penalty:
            on_real, on_fake = self._judge(discriminator, real, fakes.images.detach(), stage)
            kind = losses.LOSSES[stage.gan_loss]
            terms = kind.of_discriminator(on_real.logits, on_fake.logits)
            terms["d_identity"] = self._identity(on_fake, fakes.scenes, stage)
            loss = sum(terms.values(), real.new_zeros(()))
        else:
            terms, loss = self._penalized(discriminator, real, fakes, stage)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        self._backward(loss)
        self._update(DISCRIMINATOR, terms, stage)
        # Detached, not .item(): reading a value waits for the device, so only the logger does it.
        return {name: term.detach() for name, term in terms.items()}

    def _in_precision(self) -> Critic:
        """Return the discriminator; on CUDA with its parameters in autocast's precision."""
        dtype = self.precision.autocast_dtype
        if dtype is None or self.device.type != "cuda":
            return self.discriminator
        return converted(self.discriminator, dtype)

    def _layers(self) -> fused_layers.Kinds:
        """Return how the discriminator's layers are applied."""
        with self.autocast():
            return fused_layers.choose(self.device)

    def _penalized(
        self, discriminator: Critic, real: Tensor, fakes: Fakes, stage: Stage
    ) -> tuple[Terms, Tensor]:
        """Return the terms with R1 and R2, and a value that has the gradient of their sum.

        Reals take part as stand-ins, and so do fakes if R2 or the loss needs it. Fakes are judged
        as they are in the same pass if they do not, or if the heads must guess their scenes.
        """
        kind, fake, count = losses.LOSSES[stage.gan_loss], fakes.images.detach(), len(real)
        observes_fakes = kind.compares_pairs or stage.r2_lambda > 0
        is_judged = not observes_fakes or stage.z_lambda + stage.pos_lambda > 0
        seen = self._observe(
            discriminator, torch.cat([real, fake]) if observes_fakes else real, stage
        )
        on_real = seen.logits[:count]
        on_fake = seen.logits[count:] if observes_fakes else torch.zeros_like(on_real)  # any value
        slopes = kind.slopes(on_real, on_fake)
        if is_judged:
            slopes[count:] = 0
        slopes = slopes[: len(seen.logits)]
        pulls = torch.empty_like(slopes)  # 2 strength / B, with the strength lambda / 2
        pulls[:count] = stage.r1_lambda * stage.r1_interval / count
        pulls[count:] = stage.r2_lambda * stage.r1_interval / count
        ins = stand_ins(seen, slopes, pulls)
        others = fake if is_judged else fake[:0]
        shares = torch.cat([ins.shares, torch.ones_like(others[:, 0, 0, 0])])
        on_ins, judged = self._judge(
            discriminator, ins.images, others, stage, self._layers().affine(seen.watched, shares)
        )
        terms = kind.of_discriminator(on_real, judged.logits if is_judged else on_fake)
        terms["d_identity"] = self._identity(judged, fakes.scenes, stage)
        loss = sum(terms.values(), (ins.factors * on_ins.logits).sum())
        penalties = (0.5 * pulls * seen.squares()).split(count)
        terms |= {name: part.sum() for name, part in zip(("d_r1", "d_r2"), penalties, strict=False)}
        return terms, loss

    def _observe(self, discriminator: Critic, images: Tensor, stage: Stage) -> Observed:
        images = images.contiguous(memory_format=torch.channels_last)
        scale = None
        if self.scaler.is_enabled():
            scale = self.scaler.scale(images.new_ones(())).clamp(max=MAX_R1_SCALE)
        watched = self._layers().recorded()
        with self.autocast():
            return observe(discriminator, images, stage.alpha, scale=scale, watched=watched)

    def _judge(
        self,
        discriminator: Critic,
        some: Tensor,
        others: Tensor,
        stage: Stage,
        layers: NormalLayers | None = None,
    ) -> tuple[Verdict, Verdict]:
        """Return the verdicts on some images and on others.

        One pass serves both, because no layer mixes images.
        """
        images = torch.cat([some, others]).contiguous(memory_format=torch.channels_last)
        layers = layers or self._layers().normal
        with self.autocast():
            return discriminator(images, stage.alpha, layers).split(len(some))

    def judge(self, images: Tensor, stage: Stage) -> Verdict:
        """Return the verdicts on images (B, 3, H, W) as in a step."""
        return self._judge(self._in_precision(), images, images[:0], stage)[0]

    @float32_products(in_tf32=False)
    def _shape_terms(self, latents: Tensor, stage: Stage, rng: torch.Generator) -> Terms:
        """Return the terms on slopes of distances at points in what cameras see, in float32."""
        if not (stage.eikonal_lambda > 0 or stage.smoothness_lambda > 0):
            return {}

        def centered() -> Tensor:
            return volumetric_rendering.uniform((len(latents), SLOPE_POINTS, 3), latents, rng) - 0.5

        side = stage.render.visible_side
        film = self.generator.mapping(latents)
        distances = partial(self.generator.siren.distances, film=film)
        slopes = losses.Slopes.at(centered() * side, distances)
        terms = {}
        if stage.eikonal_lambda > 0:
            terms["g_eikonal"] = stage.eikonal_lambda * losses.eikonal(slopes)
        if stage.smoothness_lambda > 0:
            steps = NEIGHBOR * side * F.normalize(centered(), dim=-1)
            unevenness = losses.unevenness(distances, slopes, steps, NEAR * side)
            terms["g_unevenness"] = stage.smoothness_lambda * unevenness
        return terms

    @staticmethod
    def _identity(verdict: Verdict, scenes: Scenes, stage: Stage) -> Tensor:
        z_lambda, pos_lambda = stage.z_lambda, stage.pos_lambda
        return losses.identity(verdict, *scenes, z_lambda=z_lambda, pos_lambda=pos_lambda)

    def generator_step(
        self,
        real: Tensor,
        scenes: Scenes,
        stage: Stage,
        *,
        rng: torch.Generator,
        augment: Augment = unchanged,
        shared: Fakes | None = None,
    ) -> Terms:
        """Update the generator by gradient accumulation over the splits; returns its mean terms.

        Args:
            real: (B, 3, H, W); a loss of pairs compares each with the fake of the same index.
            scenes: B scenes to render, in stage.batch_split parts.
            stage: the curriculum at this step.
            rng: stream of the per-sample draws.
            augment: changes fakes before the discriminator, as reals are changed already.
            shared: the scenes as they were rendered for the discriminator; None renders them.
        """
        self.discriminator.requires_grad_(False)
        self.generator_optimizer.zero_grad(set_to_none=True)
        discriminator, layers = self._in_precision(), self._layers().normal
        kind = losses.LOSSES[stage.gan_loss]
        means: Terms = {}
        latents, pitch, yaw = (t.chunk(stage.batch_split) for t in (scenes.latents, *scenes.poses))
        partners = self._partners(discriminator, real, scenes, stage).chunk(stage.batch_split)
        for *part, on_real in zip(latents, pitch, yaw, partners, strict=True):
            part_scenes = Scenes(part[0], Poses(*part[1:]))
            fakes = shared or self.generate(part_scenes, stage, rng=rng)
            images = augment(fakes.images)
            with self.autocast():
                verdict = discriminator(images, stage.alpha, layers)
            terms = kind.of_generator(verdict.logits, on_real, stage.topk_share)
            terms["g_identity"] = self._identity(verdict, part_scenes, stage)
            if stage.opacity_lambda > 0:
                clearness = losses.half_transparency(fakes.opacities)
                terms["g_opacity"] = stage.opacity_lambda * clearness
            terms |= self._shape_terms(part[0], stage, rng)
            if stage.island_lambda > 0:
                terms["g_islands"] = stage.island_lambda * losses.on_islands(fakes.opacities)
            weight = len(part[0]) / len(scenes.latents)
            self._backward(weight * sum(terms.values(), verdict.logits.new_zeros(())))
            for name, term in terms.items():
                means[name] = means.get(name, 0) + weight * term.detach()
        self._update(GENERATOR, means, stage)
        return means

    @torch.no_grad()
    def _partners(
        self, discriminator: Critic, real: Tensor, scenes: Scenes, stage: Stage
    ) -> Tensor:
        """Return the logits (B,) of the reals to which fakes of scenes are compared, else zeros."""
        if not losses.LOSSES[stage.gan_loss].compares_pairs:
            return real.new_zeros(len(scenes.latents))
        return self._judge(discriminator, real, real[:0], stage)[0].logits

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def _set_rates(self, stage: Stage) -> None:
        for optimizer, rate in (
            (self.generator_optimizer, stage.generator_lr),
            (self.discriminator_optimizer, stage.discriminator_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["rate_share"]

    def _update(self, network: int, terms: Terms, stage: Stage) -> None:
        """Average the gradients over the processes, clip them, and step if they are finite."""
        optimizer = (self.generator_optimizer, self.discriminator_optimizer)[network]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        figures = [term.detach().float() for term in terms.values()]
        if self.precision.is_scaled:
            figures.append(self.scaler.scale(figures[0].new_ones(())))
        is_sound = torch.stack(figures).isfinite().all().float()
        if self.synchronize is not None:
            # The ranks also exchange whether loss and scale are finite, so that all count alike.
            self.synchronize([*gradients, is_sound])
        poison(gradients, is_sound)
        self.scaler.unscale_(optimizer)
        norm = nn.utils.clip_grad_norm_(parameters, stage.grad_clip)
        is_bad = ~norm.isfinite()
        if self.precision.is_scaled:  # an overflow of the scaled gradients alone is a back-off
            scale = self.scaler.scale(norm.new_ones(()))
            can_back_off = (scale > 1) & scale.isfinite()
            is_bad = is_bad & ((is_sound < 1) | ~can_back_off)
        self.health.note(network, is_bad)
        if self.scaler.is_enabled() or not is_bad:
            self.scaler.step(optimizer)
