"""BOUNDARY: what a parsed curriculum means: networks to build, and everything at each step."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from config import schema
from config.schema import Settings, StageSettings
from config.stage import OptimizerOptions, Stage, density_noise, fade_in, topk_share
from discriminators.discriminators import DISCRIMINATORS, PyramidDiscriminator
from generators.cameras import PoseDistribution
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from siren.siren import FIELDS
from system.errors import UsageError


def _either(of_stage: float | None, of_all: float) -> float:
    """The stage's value where it has one of its own."""
    return of_all if of_stage is None else of_stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """A parsed curriculum; source is the dict that it came from."""

    name: str
    source: Mapping[Any, Any]
    settings: Settings
    stages: tuple[tuple[int, StageSettings], ...]
    end: int | None

    def with_dataset_path(self, path: str) -> "Curriculum":
        """The same curriculum on other pictures."""
        return build(self.name, {**self.source, "dataset_path": path})

    def stage_settings(self, step: int) -> StageSettings:
        """The stage that holds at step, as written; the last one from the end on."""
        return [stage for start, stage in self.stages if start <= max(step, 0)][-1]

    def describe(self, step: int, last_step: int | None) -> str:
        """Which stage step is in and how far through it, for a run that ends at last_step.

        Without an end (None) the last stage has no share.
        """
        starts = [start for start, _ in self.stages]
        index = sum(start <= step for start in starts)
        start, ends = starts[index - 1], [end for end in (*starts[index:], last_step) if end]
        size = self.stages[index - 1][1].img_size
        share = f" {(step - start) / max(1, min(ends) - start):.0%}" if ends else ""
        return f"stage {index}/{len(starts)} ({size} px){share}"

    def at(self, step: int) -> Stage:
        """Everything that training needs to know at step."""
        settings, stage = self.settings, self.stage_settings(step)
        return Stage(
            step=step,
            batch_size=stage.batch_size,
            batch_split=stage.batch_split,
            generator_lr=stage.gen_lr,
            discriminator_lr=stage.disc_lr,
            alpha=fade_in(step, self._last_upsample(step), round(settings.fade_steps)),
            topk_share=topk_share(step, round(settings.topk_interval), settings.topk_v),
            render=replace(
                self._render(stage, settings.last_back),
                density_noise=density_noise(step, round(settings.density_noise_steps)),
            ),
            poses=self.poses(),
            latent_kind=settings.z_dist,
            r1_lambda=_either(stage.r1_lambda, settings.r1_lambda),
            r1_interval=settings.r1_interval,
            opacity_lambda=_either(stage.opacity_lambda, settings.opacity_lambda),
            z_lambda=settings.z_lambda,
            pos_lambda=settings.pos_lambda,
            grad_clip=settings.grad_clip,
        )

    def _last_upsample(self, step: int) -> int:
        """The first step of the stages up to step that share its image size."""
        size = self.stage_settings(step).img_size
        return min(start for start, stage in self.stages if stage.img_size == size)

    def _render(self, stage: StageSettings, last_back: bool) -> RenderOptions:
        settings = self.settings
        background: Literal["white", "last_sample", "black"] = "black"
        if settings.white_back:
            background = "white"
        elif last_back:
            background = "last_sample"
        return RenderOptions(
            image_size=stage.img_size,
            fov_degrees=settings.fov,
            near=_either(stage.ray_start, settings.ray_start),
            far=_either(stage.ray_end, settings.ray_end),
            num_steps=stage.num_steps,
            hierarchical=settings.hierarchical_sample,
            density_activation=settings.clamp_mode,
            background=background,
            lock_view_dependence=settings.lock_view_dependence,
            scene_radius=settings.scene_radius,
        )

    def evaluation_render(self, step: int) -> RenderOptions:
        """How finished pictures are rendered: evaluation background, no density noise."""
        return self._render(self.stage_settings(step), self.settings.eval_last_back)

    def preview_render(self, step: int, image_size: int) -> RenderOptions:
        """As finished pictures at another size."""
        return replace(self.evaluation_render(step), image_size=image_size)

    def poses(self) -> PoseDistribution:
        """Where training cameras stand."""
        settings = self.settings
        return PoseDistribution(
            kind=settings.sample_dist,
            yaw_mean=settings.h_mean,
            yaw_spread=settings.h_stddev,
            pitch_mean=settings.v_mean,
            pitch_spread=settings.v_stddev,
        )

    def evaluation_poses(self) -> PoseDistribution:
        """Where evaluation cameras stand; the training cameras unless the curriculum says."""
        settings, poses = self.settings, self.poses()
        kind, yaw, pitch = (
            settings.sample_dist_eval,
            settings.h_stddev_eval,
            settings.v_stddev_eval,
        )
        return replace(
            poses,
            kind=poses.kind if kind is None else kind,
            yaw_spread=poses.yaw_spread if yaw is None else yaw,
            pitch_spread=poses.pitch_spread if pitch is None else pitch,
        )

    def field_width(self) -> int:
        """Features of the field's layers."""
        return self.settings.hidden_dim or FIELDS[self.settings.model].default_hidden_dim

    def build_generator(self) -> ImplicitGenerator3d:
        """A generator with fresh parameters."""
        settings = self.settings
        return ImplicitGenerator3d(
            FIELDS[settings.model](
                z_dim=settings.latent_dim,
                hidden_dim=settings.hidden_dim,
                num_layers=settings.num_layers,
                mapping_hidden_dim=settings.mapping_hidden_dim,
                box_side=settings.box_side,
                density_scale=settings.density_scale,
            )
        )

    def build_discriminator(self) -> PyramidDiscriminator:
        """A discriminator with fresh parameters."""
        settings = self.settings
        return DISCRIMINATORS[settings.discriminator](
            latent_dim=settings.latent_dim, max_width=settings.discriminator_width
        )

    def optimizer_options(self) -> OptimizerOptions:
        """Settings of both optimizers."""
        settings = self.settings
        return OptimizerOptions(
            betas=(settings.betas[0], settings.betas[1]),
            weight_decay=settings.weight_decay,
            has_slow_mapping=settings.unique_lr,
        )


def build(name: str, source: Mapping[Any, Any], overrides: Sequence[str] = ()) -> Curriculum:
    """A curriculum from a dict and KEY=VALUE texts.

    Raises:
        UsageError: the dict does not follow the schema, or contradicts itself.
    """
    final = schema.override(name, source, list(overrides))
    parsed = schema.parse(name, final)
    curriculum = Curriculum(
        name=name,
        source=copy.deepcopy(final),
        settings=parsed.settings,
        stages=parsed.stages,
        end=parsed.end,
    )
    _check(curriculum)
    return curriculum


def _check(curriculum: Curriculum) -> None:
    """Refuse what is well-typed and still cannot be trained."""
    settings, where = curriculum.settings, f"curriculum {curriculum.name}"
    if settings.white_back and (settings.last_back or settings.eval_last_back):
        raise UsageError(f"{where}: white_back and last_back cannot both hold; choose one")
    if settings.scene_radius is not None and (settings.last_back or settings.eval_last_back):
        raise UsageError(
            f"{where}: last_back needs samples on every ray, scene_radius leaves some without; "
            "choose one"
        )
    sizes = DISCRIMINATORS[settings.discriminator].image_sizes()
    for start, stage in curriculum.stages:
        if stage.img_size not in sizes:
            raise UsageError(
                f"{where}, stage {start}: img_size is {stage.img_size}, but "
                f"{settings.discriminator} has levels for {', '.join(map(str, sizes))}"
            )
        if stage.batch_split > stage.batch_size:
            raise UsageError(
                f"{where}, stage {start}: batch_split {stage.batch_split} is more than batch_size "
                f"{stage.batch_size}"
            )
        try:
            curriculum.at(start)
        except ValueError as error:
            raise UsageError(f"{where}, stage {start}: {error}") from error
