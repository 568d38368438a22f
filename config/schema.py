"""Parse curriculum dicts, as people write them, strictly into frozen dataclasses.

A curriculum is a dict in the published schema: integer keys are steps at which a stage begins, all
other keys hold for the whole curriculum. `{}` as a stage means that training ends there. The fields
of `Settings` and `StageKeys` are the schema: names, types, ranges and defaults. A stage may also
hold any key of `Settings` that is not in `WHOLE_RUN`, and its value is taken there.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, get_type_hints

from config.stage import GanLoss
from config.values import OneOf, Range, convert, literal
from discriminators.discriminators import DISCRIMINATORS
from generators.cameras import PoseKind
from generators.sampling import LatentKind
from siren.siren import FIELDS
from system.errors import UsageError, nearest

DatasetKind = Literal["CelebA", "Cats", "Carla", "Images", "ToyCars"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


Positive = Annotated[float, Range(0)]
NonNegative = Annotated[float, Range(0, includes_low=True)]
Share = Annotated[float, Range(0, 1)]
Probability = Annotated[float, Range(0, 1, includes_low=True)]
Count = Annotated[int, Range(1, 2**31 - 1, includes_low=True)]
Beta = Annotated[float, Range(0, 0.9999999, includes_low=True)]
Width = Annotated[int, Range(1, 2**20, includes_low=True)]
Layers = Annotated[int, Range(1, 1000, includes_low=True)]
FieldName = Annotated[str, OneOf(FIELDS)]
DiscriminatorName = Annotated[str, OneOf(DISCRIMINATORS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageKeys:
    """The keys that only stages have. Batch sizes are per process."""

    batch_size: Count
    num_steps: Annotated[int, Range(3, 10_000, includes_low=True)]  # coarse samples per ray
    img_size: Annotated[int, Range(2, includes_low=True)]
    batch_split: Count = 1
    gen_lr: Positive
    disc_lr: Positive


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of all stages. Angles in radians except fov, distances in scene units."""

    # What is trained
    model: FieldName
    generator: Literal["ImplicitGenerator3d"] = "ImplicitGenerator3d"
    discriminator: DiscriminatorName
    latent_dim: Width = 256
    z_dist: LatentKind = "gaussian"
    hidden_dim: Width | None = None  # width of the field; None: the class's published width
    num_layers: Layers | None = None  # of the field's trunk; None: 8
    mapping_hidden_dim: Width = 256
    box_side: Positive | None = None  # cube that the field scales to [-1, 1]; None: the class's own
    density_scale: Positive = 1.0  # factor on the raw density
    # Density is a sigmoid of this width (scene units) of a signed distance; None: learned freely.
    surface_width: Positive | None = None
    # The most channels of a layer; or a tuple, those of each level from 2 x 2 pixels up, of which
    # larger levels have the last. None: 400.
    discriminator_width: Width | tuple[Width, ...] | None = None
    # On what
    dataset: DatasetKind
    dataset_path: str | None = None
    num_images: Annotated[int, Range(1, 10**6, includes_low=True)] = 4000  # ToyCars only
    crop: Count | Literal["none", "center"] | None = None  # None: the data set's own
    flip: bool | None = None  # None: the data set's own
    # "points": the colors that single rays meet, so that edges are as sharp as those of renders.
    resize: Literal["antialias", "points", "nearest"] = "antialias"
    # Probability of augmentation; "auto" adapts it, for own pictures if there are fewer than 5000.
    augment: Probability | Literal["auto"] = 0.0
    # Cameras
    fov: Annotated[float, Range(0, 179)]  # degrees
    ray_start: NonNegative
    ray_end: Positive
    sample_dist: PoseKind
    h_mean: float
    v_mean: float
    h_stddev: NonNegative
    v_stddev: NonNegative
    sample_dist_eval: PoseKind | None = None
    h_stddev_eval: NonNegative | None = None
    v_stddev_eval: NonNegative | None = None
    learnable_dist: bool = False  # search the cameras while training (published: never used)
    # Rendering
    clamp_mode: Literal["relu", "softplus"] = "relu"
    hierarchical_sample: bool = True
    white_back: bool = False
    last_back: bool = False
    eval_last_back: bool = False
    lock_view_dependence: bool = False
    scene_radius: Annotated[float, Range(0, 0.999)] | None = None  # nothing farther from the middle
    # In training the samples of a ray move by one random number; published: each by its own.
    shares_jitter: bool = False
    density_noise_steps: NonNegative = 5000.0
    preview_size: Count = 128
    # The game
    fade_steps: NonNegative = 10000.0
    topk_interval: Annotated[float, Range(1, includes_low=True)] | None = None  # steps; None: all
    topk_v: Share = 1.0
    instance_noise: NonNegative = 0.0  # in published dicts, where nothing uses it either
    # "relativistic" (R3GAN, Huang et al. 2024) compares each fake with a real, without top-k.
    gan_loss: GanLoss = "logistic"
    r1_lambda: NonNegative
    r2_lambda: NonNegative = 0.0  # penalty on the gradient at fakes, as r1_lambda at reals (R3GAN)
    r1_interval: Count = 1  # steps between both penalties, each that many times stronger
    opacity_lambda: NonNegative = 0.0  # the generator's penalty on half-transparent rays
    eikonal_lambda: NonNegative = 0.0  # that on slopes of the signed distance other than 1
    smoothness_lambda: NonNegative = 0.0  # that on normals that differ between near points
    # The generator's penalty on opaque parts that are not connected with the object in an image.
    island_lambda: NonNegative = 0.0
    # Both updates of a step use the same generated images, rendered once. Needs batch_split 1.
    shares_fakes: bool = False
    z_lambda: NonNegative = 0.0
    pos_lambda: NonNegative = 0.0
    betas: tuple[Beta, Beta] = (0.0, 0.9)
    weight_decay: NonNegative = 0.0
    grad_clip: Positive
    unique_lr: bool = False  # the mapping network learns at 0.05 of the rate
    precision: Precision = "auto"  # auto: fp16 on CUDA, fp32 elsewhere
    disable_scaler: bool = False


_ONCE = {
    "the networks are built once": (
        *("model", "generator", "discriminator", "latent_dim", "hidden_dim", "num_layers"),
        *("mapping_hidden_dim", "box_side", "density_scale"),
        *("surface_width", "discriminator_width"),
    ),
    "the pictures are opened once": (
        *("dataset", "dataset_path", "num_images", "crop", "flip", "resize", "augment"),
    ),
    "the optimizers are built once": (
        *("betas", "weight_decay", "unique_lr", "precision", "disable_scaler"),
    ),
    "cameras are searched in the whole run": ("learnable_dist",),
    "previews and FID of all stages are to be compared": (
        *("z_dist", "sample_dist_eval", "h_stddev_eval", "v_stddev_eval", "preview_size"),
    ),
}
# Why a key cannot change between stages.
WHOLE_RUN = {key: reason for reason, keys in _ONCE.items() for key in keys}
# Published values and ours. None as a pose distribution is its mean, without a draw.
PUBLISHED_VALUES: dict[str, dict[object, str]] = {
    "sample_dist": {"normal": "gaussian", None: "mean"},
    "sample_dist_eval": {"normal": "gaussian"},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings(StageKeys):
    """One stage: its own keys, the values that it changes, and all settings that hold in it."""

    changed: Mapping[str, Any]
    settings: Settings


def parse(
    name: str, source: Mapping[object, object]
) -> tuple[Settings, tuple[tuple[int, StageSettings], ...], int | None]:
    """Return the typed form of a curriculum dict: settings, stages and end, as Curriculum has them.

    Raises:
        UsageError: a key or value that the schema does not know, naming the nearest key or what is
            allowed; stages that are missing, empty in the middle, or not in the schema.
    """
    steps = sorted(key for key in source if isinstance(key, int) and not isinstance(key, bool))
    globals_ = {str(k): v for k, v in source.items() if k not in steps}
    if not steps or steps[0] != 0:
        raise UsageError(f"curriculum {name}: needs a stage that begins at step 0")
    stages, end = [], None
    for step in steps:
        stage = source[step]
        if not isinstance(stage, Mapping):
            raise UsageError(f"curriculum {name}: stage {step} is {stage!r}, it must be a dict")
        if not stage:
            end = step
            break
        stages.append((step, _stage(f"{name}, stage {step}", stage, globals_)))
    if end is not None and end != steps[-1]:
        raise UsageError(f"curriculum {name}: stages follow after the empty one at {end}")
    if not stages:
        raise UsageError(f"curriculum {name}: stage 0 is empty")
    whole = _build(name, Settings, {**stages[0][1].changed, **globals_})
    return whole, tuple(stages), end


def _stage(
    where: str, source: Mapping[Any, object], globals_: Mapping[str, object]
) -> StageSettings:
    """Return a stage, in which its own values hold before those of the whole curriculum."""
    for key in source:
        _check_stage_key(f"curriculum {where}", str(key))
    own = {key: value for key, value in source.items() if key in _names(StageKeys)}
    changed = {key: value for key, value in source.items() if key not in own}
    keys = _build(where, StageKeys, own)
    settings = _build(where, Settings, {**globals_, **changed})
    return StageSettings(
        **{name: getattr(keys, name) for name in _names(StageKeys)},
        changed={key: getattr(settings, key) for key in changed},
        settings=settings,
    )


def keys_set_twice(source: Mapping[Any, object]) -> list[str]:
    """Return the keys that both a stage and the whole curriculum set.

    The published code takes the value of the whole, ours that of the stage.
    """
    stages = [stage for stage in source.values() if isinstance(stage, Mapping)]
    return sorted({str(key) for stage in stages for key in stage if key in source})


def values_of(source: Mapping[Any, object], key: Any) -> tuple[object, ...]:
    """Return a key with its value for the whole curriculum and those in its stages."""
    stages = [stage for stage in source.values() if isinstance(stage, Mapping)]
    return key, source.get(key), *(stage.get(key) for stage in stages)


def override(name: str, source: Mapping[object, object], texts: list[str]) -> dict[object, object]:
    """Return a copy of a curriculum dict with KEY=VALUE texts applied, STEP.KEY=VALUE for a stage.

    KEY=VALUE holds in all stages, also in those that had a value of their own.

    Raises:
        UsageError: no such key or stage, or a text without "=".
    """
    result: dict[object, object] = {
        key: dict(value) if isinstance(value, Mapping) else value for key, value in source.items()
    }
    for text in texts:
        path, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set {text}: expected KEY=VALUE, as in --set r1_lambda=1")
        step, dot, key = path.strip().partition(".")
        if not dot:
            _refuse_stage_key(text, step, value, result)
            _check_key("--set", step, Settings)
            result[step] = literal(value)
            for stage in result.values():  # what a person sets holds in all stages
                if isinstance(stage, dict):
                    stage.pop(step, None)
            continue
        chosen = result.get(int(step)) if step.isdigit() else None
        if not isinstance(chosen, dict):
            starts = ", ".join(str(key) for key in result if isinstance(key, int) and result[key])
            raise UsageError(f"--set {text}: {name} has no stage {step}; its stages are {starts}")
        _check_stage_key("--set", key)
        chosen[key] = literal(value)
    return result


def _refuse_stage_key(text: str, key: str, value: str, source: Mapping[object, object]) -> None:
    """Raise UsageError for a key that only stages have; the text says how to set it."""
    if key in _names(StageKeys):
        starts = [step for step in source if isinstance(step, int) and source[step]]
        each = " ".join(f"--set {step}.{key}={value}" for step in sorted(starts))
        raise UsageError(f"--set {text}: {key} is a key of stages: {each}")


def _names(schema: type[Any]) -> list[str]:
    return [f.name for f in dataclasses.fields(schema)]


def _check_stage_key(where: str, key: str) -> None:
    if key in WHOLE_RUN:
        raise UsageError(f"{where}: {key} cannot change between stages: {WHOLE_RUN[key]}")
    _check_name(where, key, [*_names(StageKeys), *_names(Settings)])


def _check_key(where: str, key: str, schema: type[Any]) -> None:
    _check_name(where, key, _names(schema))


def _check_name(where: str, key: str, names: list[str]) -> None:
    if key not in names:
        of_stages = nearest(key, _names(StageKeys))
        hint = nearest(key, names) or of_stages or f" Keys are {', '.join(names)}."
        raise UsageError(f"{where}: unknown key {key!r}.{hint}")


def _build(where: str, schema: type[Any], source: Mapping[Any, object]) -> Any:
    hints = get_type_hints(schema, include_extras=True)
    for key in source:
        _check_key(f"curriculum {where}", str(key), schema)
    required = [f.name for f in dataclasses.fields(schema) if f.default is MISSING]
    missing = [name for name in required if name not in source]
    if missing:
        raise UsageError(f"curriculum {where}: missing {', '.join(missing)}")
    ours = {key: _ours(key, value) for key, value in source.items()}
    return schema(
        **{key: convert(f"curriculum {where}: {key}", v, hints[key]) for key, v in ours.items()}
    )


def _ours(key: str, value: object) -> object:
    """Return our name of a published value."""
    table = PUBLISHED_VALUES.get(key, {})
    return table.get(value, value) if value is None or isinstance(value, str) else value
