"""BOUNDARY: curriculum dicts, as people write them, parsed strictly into frozen dataclasses.

A curriculum is a dict in the published schema: integer keys are steps at which a stage begins, all
other keys are global. `{}` as a stage means that training ends there. The fields of `Settings` and
`StageSettings` are the schema: their names, types, ranges and defaults decide what a dict may say.
"""

import ast
import dataclasses
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from discriminators.discriminators import DISCRIMINATORS
from generators.cameras import PoseKind
from generators.sampling import LatentKind
from siren.siren import FIELDS
from system.errors import UsageError, nearest

DatasetKind = Literal["CelebA", "Cats", "Carla", "Images", "ToyCars"]
Precision = Literal["auto", "fp32", "fp16", "bf16"]


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, low itself only where includes_low."""

    low: float
    high: float = float("inf")
    includes_low: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.low <= value if self.includes_low else self.low < value) and value <= self.high

    def __str__(self) -> str:
        start = "at least" if self.includes_low else "more than"
        end = "" if self.high == float("inf") else f" and at most {self.high:g}"
        return f"{start} {self.low:g}{end}"


@dataclass(frozen=True)
class OneOf:
    """The names of a table, so that a class added there can be named in a curriculum."""

    table: Mapping[str, object]


Positive = Annotated[float, Range(0)]
NonNegative = Annotated[float, Range(0, includes_low=True)]
Share = Annotated[float, Range(0, 1)]
Count = Annotated[int, Range(1, 2**31 - 1, includes_low=True)]
Width = Annotated[int, Range(1, 2**20, includes_low=True)]
Layers = Annotated[int, Range(1, 1000, includes_low=True)]
FieldName = Annotated[str, OneOf(FIELDS)]
DiscriminatorName = Annotated[str, OneOf(DISCRIMINATORS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSettings:
    """One stage. Batch sizes are per process; None means the global value."""

    batch_size: Count
    num_steps: Annotated[int, Range(3, 2**31 - 1, includes_low=True)]  # coarse samples per ray
    img_size: Annotated[int, Range(2, includes_low=True)]
    batch_split: Count = 1
    gen_lr: Positive
    disc_lr: Positive
    r1_lambda: NonNegative | None = None
    opacity_lambda: NonNegative | None = None
    ray_start: NonNegative | None = None
    ray_end: Positive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What holds in all stages. Angles in radians except fov, distances in scene units."""

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
    discriminator_width: Width | None = None  # the most channels of a layer; None: 400
    # On what
    dataset: DatasetKind
    dataset_path: str | None = None
    num_images: Annotated[int, Range(1, 10**6, includes_low=True)] = 4000  # ToyCars only
    crop: Count | Literal["none", "center"] | None = None  # None: the data set's own
    flip: bool | None = None  # None: the data set's own
    resize: Literal["antialias", "nearest"] = "antialias"
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
    learnable_dist: Literal[False] = False  # in published dicts, never used
    # Rendering
    clamp_mode: Literal["relu", "softplus"] = "relu"
    hierarchical_sample: bool = True
    white_back: bool = False
    last_back: bool = False
    eval_last_back: bool = False
    lock_view_dependence: bool = False
    scene_radius: Annotated[float, Range(0, 0.999)] | None = None  # nothing farther from the middle
    density_noise_steps: NonNegative = 5000.0
    preview_size: Count = 128
    # The game
    fade_steps: NonNegative = 10000.0
    topk_interval: Annotated[float, Range(1, includes_low=True)]  # steps
    topk_v: Share
    r1_lambda: NonNegative
    r1_interval: Count = 1  # steps between penalties, each that many times stronger
    opacity_lambda: NonNegative = 0.0  # the generator's penalty on half-transparent rays
    z_lambda: NonNegative = 0.0
    pos_lambda: NonNegative = 0.0
    betas: tuple[Annotated[float, Range(0, 0.9999999, includes_low=True)], ...] = (0.0, 0.9)
    weight_decay: NonNegative = 0.0
    grad_clip: Positive
    unique_lr: bool = False  # the mapping network learns at 0.05 of the rate
    precision: Precision = "auto"  # auto: fp16 on CUDA, fp32 elsewhere
    disable_scaler: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A whole curriculum: stages by their first step, and where it ends (None: never)."""

    settings: Settings
    stages: tuple[tuple[int, StageSettings], ...]
    end: int | None = field(default=None)


def parse(name: str, source: Mapping[object, object]) -> Parsed:
    """The typed form of a curriculum dict.

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
        stages.append((step, _build(f"{name}, stage {step}", StageSettings, stage)))
    if end is not None and end != steps[-1]:
        raise UsageError(f"curriculum {name}: stages follow after the empty one at {end}")
    if not stages:
        raise UsageError(f"curriculum {name}: stage 0 is empty")
    return Parsed(settings=_build(name, Settings, globals_), stages=tuple(stages), end=end)


def override(name: str, source: Mapping[object, object], texts: list[str]) -> dict[object, object]:
    """A copy of a curriculum dict with KEY=VALUE texts applied, STEP.KEY=VALUE for a stage.

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
            result[step] = _literal(value)
            for stage in result.values():  # what a person sets holds in all stages
                if isinstance(stage, dict):
                    stage.pop(step, None)
            continue
        chosen = result.get(int(step)) if step.isdigit() else None
        if not isinstance(chosen, dict):
            starts = ", ".join(str(key) for key in result if isinstance(key, int) and result[key])
            raise UsageError(f"--set {text}: {name} has no stage {step}; its stages are {starts}")
        _check_key("--set", key, StageSettings)
        chosen[key] = _literal(value)
    return result


def _refuse_stage_key(text: str, key: str, value: str, source: Mapping[object, object]) -> None:
    """Say how a key is set that only stages have."""
    only_stages = {f.name for f in dataclasses.fields(StageSettings)} - {
        f.name for f in dataclasses.fields(Settings)
    }
    if key in only_stages:
        starts = [step for step in source if isinstance(step, int) and source[step]]
        each = " ".join(f"--set {step}.{key}={value}" for step in sorted(starts))
        raise UsageError(f"--set {text}: {key} is a key of stages: {each}")


def _literal(text: str) -> object:
    """What a person means by text: a number, True, None, a tuple, or else the text itself."""
    words = {"true": True, "false": False, "none": None}
    if text.strip().lower() in words:
        return words[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _check_key(where: str, key: str, schema: type[Any]) -> None:
    names = [f.name for f in dataclasses.fields(schema)]
    if key not in names:
        hint = nearest(key, names) or f" Keys are {', '.join(names)}."
        raise UsageError(f"{where}: unknown key {key!r}.{hint}")


def _build(where: str, schema: type[Any], source: Mapping[Any, object]) -> Any:
    hints = get_type_hints(schema, include_extras=True)
    for key in source:
        _check_key(f"curriculum {where}", str(key), schema)
    required = [f.name for f in dataclasses.fields(schema) if f.default is MISSING]
    missing = [name for name in required if name not in source]
    if missing:
        raise UsageError(f"curriculum {where}: missing {', '.join(missing)}")
    return schema(
        **{key: _convert(f"curriculum {where}: {key}", v, hints[key]) for key, v in source.items()}
    )


def _convert(where: str, value: object, hint: Any) -> Any:
    """Value as the type hint says, or a UsageError that tells what is allowed."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(where, value, get_args(hint))
    if origin is Literal:
        return _convert_choice(where, value, get_args(hint))
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise UsageError(f"{where} is {value!r}, it must be a pair of numbers")
        return tuple(_convert(where, item, get_args(hint)[0]) for item in value)
    if origin is Annotated:
        base, allowed = get_args(hint)
        if isinstance(allowed, OneOf):
            return _convert_choice(where, value, tuple(allowed.table))
        number = _convert(where, value, base)
        if number not in allowed:
            raise UsageError(f"{where} is {value!r}, it must be {allowed}")
        return number
    return _convert_plain(where, value, hint)


def _convert_plain(where: str, value: object, kind: type) -> object:
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if abs(value) == float("inf") or value != value:
            raise UsageError(f"{where} is {value!r}, it must be a finite number")
        return float(value)
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if type(value) is kind:
        return value
    expected = {float: "a number", int: "a whole number", bool: "True or False"}
    raise UsageError(f"{where} is {value!r}, it must be {expected.get(kind, 'text')}")


def _convert_choice(where: str, value: object, choices: tuple[object, ...]) -> object:
    if value in choices and type(value) in {type(choice) for choice in choices}:
        return value
    by_name = {str(choice).casefold(): choice for choice in choices}
    if isinstance(value, str) and value.casefold() in by_name:
        return by_name[value.casefold()]
    allowed = ", ".join(str(choice) for choice in choices)
    hint = nearest(str(value), [str(choice) for choice in choices])
    raise UsageError(f"{where} is {value!r}; choose one of {allowed}.{hint}")


def _convert_union(where: str, value: object, options: tuple[Any, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    first_error: UsageError | None = None
    for option in options:
        if option is type(None):
            continue
        try:
            return _convert(where, value, option)
        except UsageError as error:
            first_error = first_error or error
    assert first_error is not None
    raise first_error
