"""Curricula: the networks to build, the settings that hold at each step, and the last step."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from config import schema
from config.schema import Settings, StageSettings
from config.stage import OptimizerOptions, Stage, density_noise, fade_in, topk_share
from discriminators.discriminators import DISCRIMINATORS, PyramidDiscriminator
from generators.cameras import PoseDistribution
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions
from siren.siren import FIELDS
from system.errors import UsageError

LEARNABLE = ("gaussian", "truncated_gaussian", "uniform", "hybrid")  # kinds that are searched


class StagePart(NamedTuple):
    """What the progress bar tells of a stage, and its first step and end (None: no end)."""

    title: str
    start: int
    end: int | None

    @property
    def num_steps(self) -> int | None:
        """Return its length."""
        return None if self.end is None else self.end - self.start


class Ending(NamedTuple):
    """The last step of a run (None: no end) and a description of the limit that sets it."""

    step: int | None
    reason: str

    def is_reached(self, step: int) -> bool:
        """Return whether the run is complete after that many steps."""
        return self.step is not None and step >= self.step

    def __str__(self) -> str:
        return "has no end" if self.step is None else f"ends at step {self.step}: {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curriculum:
    """A parsed curriculum; source is the dict that it was parsed from.

    settings: those of the first stage, where only stages have a value. stages: by their first step.
    end: the step at which training ends; None is never.
    """

    name: str
    source: Mapping[Any, Any]
    settings: Settings
    stages: tuple[tuple[int, StageSettings], ...]
    end: int | None

    def with_dataset_path(self, path: str) -> "Curriculum":
        """Return the same curriculum with another dataset path."""
        return build(self.name, {**self.source, "dataset_path": path})

    def with_poses(self, poses: PoseDistribution) -> "Curriculum":
        """Return the same curriculum with other training cameras in all stages."""
        changes = [f"{key}={value}" for key, value in keys_of_poses(poses).items()]
        return build(self.name, self.source, changes)

    def stage_settings(self, step: int) -> StageSettings:
        """Return the stage that holds at step, as written; after the end, the last one."""
        return [stage for start, stage in self.stages if start <= max(step, 0)][-1]

    def part(self, step: int, last_step: int | None) -> StagePart:
        """Return the part of training in which step lies; last_step is that of the run, if any."""
        starts = [start for start, _ in self.stages]
        index = sum(start <= step for start in starts)
        ends = [end for end in (*starts[index:], last_step) if end]
        size = self.stages[index - 1][1].img_size
        title = f"stage {index}/{len(starts)} ({size} px)"
        return StagePart(title, starts[index - 1], min(ends, default=None))

    def ending(
        self,
        *,
        first_step: int,
        num_images: int,
        world_size: int,
        max_steps: int | None,
        n_epochs: int | None,
    ) -> Ending:
        """Return the earliest of the curriculum's end, --max_steps and --n_epochs.

        Epochs are counted from first_step on, the steps done before, over num_images; each of
        world_size processes takes a batch. max_steps or n_epochs None is no limit.
        """
        limits = [Ending(self.end, "the end of the schedule")]
        limits.append(Ending(max_steps, f"--max_steps {max_steps}"))
        if n_epochs is not None:
            step = self._step_after(first_step, n_epochs * num_images, world_size)
            limits.append(Ending(step, f"--n_epochs {n_epochs} over {num_images} pictures"))
        return min(
            (limit for limit in limits if limit.step is not None),
            key=lambda limit: limit.step or 0,
            default=Ending(None, ""),
        )

    def _step_after(self, first_step: int, num_images: int, world_size: int) -> int:
        """Return the step at which so many images were seen since first_step."""
        step, images = first_step, 0
        for upper in [start for start, _ in self.stages if start > first_step]:
            batch = self.stage_settings(step).batch_size * world_size
            if images + (upper - step) * batch >= num_images:
                break
            images, step = images + (upper - step) * batch, upper
        batch = self.stage_settings(step).batch_size * world_size
        return step + -(-(num_images - images) // batch)  # rounded up, in whole numbers

    def at(self, step: int) -> Stage:
        """Return everything that training needs to know at step."""
        stage = self.stage_settings(step)
        settings = stage.settings
        return Stage(
            step=step,
            batch_size=stage.batch_size,
            batch_split=stage.batch_split,
            generator_lr=stage.gen_lr,
            discriminator_lr=stage.disc_lr,
            alpha=fade_in(step, self._last_upsample(step), round(settings.fade_steps)),
            topk_share=topk_share(step, settings.topk_interval, settings.topk_v),
            render=replace(
                self._render(stage, settings.last_back),
                density_noise=density_noise(step, round(settings.density_noise_steps)),
            ),
            poses=_poses(settings),
            latent_kind=settings.z_dist,
            gan_loss=settings.gan_loss,
            r1_lambda=settings.r1_lambda,
            r2_lambda=settings.r2_lambda,
            r1_interval=settings.r1_interval,
            opacity_lambda=settings.opacity_lambda,
            eikonal_lambda=settings.eikonal_lambda,
            smoothness_lambda=settings.smoothness_lambda,
            island_lambda=settings.island_lambda,
            shares_fakes=settings.shares_fakes,
            z_lambda=settings.z_lambda,
            pos_lambda=settings.pos_lambda,
            grad_clip=settings.grad_clip,
        )

    def _last_upsample(self, step: int) -> int:
        """Return the first step of the stages that have the image size of step."""
        size = self.stage_settings(step).img_size
        return min(start for start, stage in self.stages if stage.img_size == size)

    def _render(self, stage: StageSettings, last_back: bool) -> RenderOptions:
        settings = stage.settings
        background: Literal["white", "last_sample", "black"] = "black"
        if settings.white_back:
            background = "white"
        elif last_back:
            background = "last_sample"
        return RenderOptions(
            image_size=stage.img_size,
            fov_degrees=settings.fov,
            near=settings.ray_start,
            far=settings.ray_end,
            num_steps=stage.num_steps,
            hierarchical=settings.hierarchical_sample,
            density_activation=settings.clamp_mode,
            background=background,
            lock_view_dependence=settings.lock_view_dependence,
            scene_radius=settings.scene_radius,
            surface_width=settings.surface_width,
            shares_jitter=settings.shares_jitter,
        )

    def evaluation_render(self, step: int, *, is_locked: bool = False) -> RenderOptions:
        """Return the options of evaluation renders: evaluation background, no density noise.

        They spread the coarse weights; training, as published, does not. is_locked is
        --lock_view_dependence; the curriculum may lock it too.
        """
        stage = self.stage_settings(step)
        options = self._render(stage, stage.settings.eval_last_back)
        is_locked = is_locked or options.lock_view_dependence
        return replace(options, spreads_weights=True, lock_view_dependence=is_locked)

    def preview_render(
        self, step: int, image_size: int, *, is_locked: bool = False
    ) -> RenderOptions:
        """Return the options of evaluation renders at another image size."""
        return replace(self.evaluation_render(step, is_locked=is_locked), image_size=image_size)

    def poses(self) -> PoseDistribution:
        """Return the pose distribution of the training cameras, apart from changes by stages."""
        return _poses(self.settings)

    def evaluation_poses(self) -> PoseDistribution:
        """Return the pose distribution for evaluation: that of training unless the keys are set."""
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
        """Return the number of features of the field's layers."""
        return self.settings.hidden_dim or FIELDS[self.settings.model].default_hidden_dim

    def build_generator(self) -> ImplicitGenerator3d:
        """Return a generator with fresh parameters."""
        settings = self.settings
        return ImplicitGenerator3d(
            FIELDS[settings.model](
                z_dim=settings.latent_dim,
                hidden_dim=settings.hidden_dim,
                num_layers=settings.num_layers,
                mapping_hidden_dim=settings.mapping_hidden_dim,
                box_side=settings.box_side,
                density_scale=settings.density_scale,
                surface_width=settings.surface_width,
            )
        )

    def build_discriminator(self) -> PyramidDiscriminator:
        """Return a discriminator with fresh parameters."""
        settings = self.settings
        return DISCRIMINATORS[settings.discriminator](
            latent_dim=settings.latent_dim, width=settings.discriminator_width
        )

    def optimizer_options(self) -> OptimizerOptions:
        """Return the settings of both optimizers."""
        settings = self.settings
        return OptimizerOptions(
            betas=settings.betas,
            weight_decay=settings.weight_decay,
            has_slow_mapping=settings.unique_lr,
        )


def _poses(settings: Settings) -> PoseDistribution:
    return PoseDistribution(
        kind=settings.sample_dist,
        yaw_mean=settings.h_mean,
        yaw_spread=settings.h_stddev,
        pitch_mean=settings.v_mean,
        pitch_spread=settings.v_stddev,
    )


def keys_of_poses(poses: PoseDistribution) -> dict[str, str | float]:
    """Return the keys that give a curriculum these training cameras."""
    return {
        "sample_dist": poses.kind,
        "v_mean": poses.pitch_mean,
        "v_stddev": poses.pitch_spread,
        "h_mean": poses.yaw_mean,
        "h_stddev": poses.yaw_spread,
    }


def build(name: str, source: Mapping[Any, Any], overrides: Sequence[str] = ()) -> Curriculum:
    """Parse a curriculum from a dict and KEY=VALUE texts.

    Raises:
        UsageError: the dict does not follow the schema, or contradicts itself.
    """
    final = schema.override(name, source, list(overrides))
    settings, stages, end = schema.parse(name, final)
    source = copy.deepcopy(final)
    curriculum = Curriculum(name=name, source=source, settings=settings, stages=stages, end=end)
    _check(curriculum)
    return curriculum


def _check(curriculum: Curriculum) -> None:
    """Raise UsageError for settings that are well-typed but contradict each other."""
    sizes = DISCRIMINATORS[curriculum.settings.discriminator].image_sizes()
    for start, stage in curriculum.stages:
        where = f"curriculum {curriculum.name}, stage {start}"
        settings = stage.settings
        takes_last = ("last_back", "eval_last_back")
        last = " and ".join(key for key in takes_last if getattr(settings, key))
        if settings.white_back and last:
            raise UsageError(f"{where}: white_back and {last} cannot both hold; choose one")
        if settings.scene_radius is not None and last:
            raise UsageError(
                f"{where}: {last} needs samples on every ray, scene_radius leaves some without; "
                "choose one"
            )
        if settings.learnable_dist and settings.sample_dist not in LEARNABLE:
            raise UsageError(
                f"{where}: learnable_dist needs sample_dist {' or '.join(LEARNABLE)}, not "
                f"{settings.sample_dist}"
            )
        if stage.img_size not in sizes:
            raise UsageError(
                f"{where}: img_size is {stage.img_size}, but {settings.discriminator} has levels "
                f"for {', '.join(map(str, sizes))}"
            )
        for key in ("eikonal_lambda", "smoothness_lambda"):
            if getattr(settings, key) > 0 and settings.surface_width is None:
                raise UsageError(f"{where}: {key} needs a surface_width")
        if settings.surface_width is not None and settings.density_scale > (settings.box_side or 2):
            raise UsageError(
                f"{where}: with surface_width, density_scale {settings.density_scale:g} is a "
                "distance and must be at most box_side; a tenth of it is usual"
            )
        if stage.batch_split > stage.batch_size:
            raise UsageError(
                f"{where}: batch_split {stage.batch_split} is more than batch_size "
                f"{stage.batch_size}"
            )
        if settings.shares_fakes and stage.batch_split > 1:
            raise UsageError(
                f"{where}: shares_fakes keeps all images of a step, batch_split "
                f"{stage.batch_split} only a part of them; choose one"
            )
        try:
            curriculum.at(start)
        except ValueError as error:
            raise UsageError(f"{where}: {error}") from error
