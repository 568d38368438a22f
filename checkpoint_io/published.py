"""Take networks and averages out of the files of the published pi-GAN code.

Those files are pickles of whole objects, which `safe_load` reads as Records. A generator's Record
says what a state dict would not: its class and how it scales space. Averages have no names; their
order is that of the parameters of the generator that was averaged.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from checkpoint_io.network_state import PUBLISHED_NUM_LAYERS, StateError, checked_tensor, is_layer
from checkpoint_io.pickle_scan import shown
from checkpoint_io.safe_load import Record
from config import curriculum as curricula
from config.curriculum import Curriculum
from discriminators.discriminators import DISCRIMINATORS
from siren.siren import FIELDS

GENERATOR = "ImplicitGenerator3d"
AVERAGE = "ExponentialMovingAverage"
MAX_MODULES = 2_000
MAX_PREFIX = 500  # characters
ENCODER_OUTPUTS = 3  # logit, pitch, yaw; the others guess the latent


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedGenerator:
    """A generator: the class of its field, its parameters in the published order, its settings.

    box_side: side of the cube that is scaled to [-1, 1], scene units; None if points are not
    scaled. step: updates done by the object's own count, which lags behind in some files.
    """

    model: str
    parameters: dict[str, Tensor]
    box_side: float | None
    step: int

    def adapt(self, curriculum: Curriculum) -> Curriculum:
        """Return the curriculum with this generator's networks.

        Raises StateError if this project has no such field, UsageError if a width is beyond the
        limits.
        """
        shapes = {name: tuple(value.shape) for name, value in self.parameters.items()}
        mapping = _matrix(shapes, "siren.mapping_network.network.0.weight")
        layers = sum(is_layer(name) for name in shapes)
        width = _matrix(shapes, "siren.final_layer.weight")[1]
        kind = FIELDS[self.model]
        usual_side, side = kind.default_box_side, self.box_side
        is_usual = side is not None and usual_side is not None and math.isclose(side, usual_side)
        changes = {
            "model": self.model,
            "latent_dim": mapping[1],
            "mapping_hidden_dim": mapping[0],
            "hidden_dim": None if width == kind.default_hidden_dim else width,
            "num_layers": None if layers == PUBLISHED_NUM_LAYERS else layers,
            "box_side": None if is_usual else side,
            "density_scale": 1.0,
        }
        return _changed(curriculum, changes)

    def averaged(self, average: "PublishedAverage") -> dict[str, Tensor]:
        """Return the averages by parameter name; StateError if they belong to another generator."""
        if len(average.shadow) != len(self.parameters):
            raise StateError(
                f"holds {len(average.shadow)} averages for {len(self.parameters)} parameters"
            )
        return {
            name: checked_tensor(name, value, own.shape)
            for (name, own), value in zip(self.parameters.items(), average.shadow, strict=True)
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedAverage:
    """Averages in the order of the parameters, and the count of updates, or None if not kept."""

    shadow: list[Tensor]
    num_updates: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PublishedDiscriminator:
    """A discriminator: its class and its parameters in the published order."""

    kind: str
    parameters: dict[str, Tensor]

    def adapt(self, curriculum: Curriculum) -> Curriculum:
        """Return the curriculum with this discriminator; raises as PublishedGenerator.adapt."""
        shapes = {name: tuple(value.shape) for name, value in self.parameters.items()}
        outputs = _matrix(shapes, "final_layer.weight", dimensions=4)[0]
        kind = DISCRIMINATORS[self.kind]
        latent_dim = curriculum.settings.latent_dim
        if kind.predicts_identity and outputs - ENCODER_OUTPUTS != latent_dim:
            guessed = outputs - ENCODER_OUTPUTS
            raise StateError(f"guesses latents of {guessed} numbers, they have {latent_dim}")
        adapters = (f"fromRGB.{level}.model.0.weight" for level in range(len(kind.widths)))
        widths = [_matrix(shapes, name, dimensions=4)[0] for name in adapters]
        known = (None, widths[-1], tuple(widths[::-1]))
        own_width = next(width for width in known if kind.widths_of(width) == widths)
        changes = {"discriminator": self.kind, "discriminator_width": own_width}
        return _changed(curriculum, changes)


def _matrix(
    shapes: dict[str, tuple[int, ...]], name: str, *, dimensions: int = 2
) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != dimensions:
        raise StateError(f"lacks {name}" if not shape else f"has {name} of shape {list(shape)}")
    return shape


def _changed(curriculum: Curriculum, changes: dict[str, Any]) -> Curriculum:
    """Return the curriculum with these settings; those that it has already are not written."""
    now = {key: value for key, value in changes.items()
           if getattr(curriculum.settings, key) != value}  # fmt: skip
    if not now:
        return curriculum
    return curricula.build(curriculum.name, {**curriculum.source, **now})


def generator_of(root: Any) -> PublishedGenerator | None:
    """Return a file's published generator; None for another thing, StateError if it is damaged."""
    if not isinstance(root, Record) or root.short_name != GENERATOR:
        return None
    siren = _modules(root).get("siren")
    if siren is None or siren.short_name not in FIELDS:
        raise StateError(f"holds a {GENERATOR} without a field that is known")
    warp = _modules(siren).get("gridwarper")
    if warp is None and FIELDS[siren.short_name].default_box_side is not None:
        raise StateError(f"holds a {siren.short_name} without its gridwarper")
    scale: Any = 1.0 if warp is None else warp.attributes.get("scale_factor")
    if type(scale) not in (int, float) or not 0 < scale < math.inf:
        raise StateError("has a gridwarper without a scale_factor above 0")
    return PublishedGenerator(
        model=siren.short_name,
        parameters=dict(_parameters(root)),
        box_side=None if warp is None else 2 / float(scale),
        step=_count(root.attributes.get("step", 0), "step") or 0,
    )


def discriminator_of(root: Any) -> PublishedDiscriminator | None:
    """Return a file's published discriminator; None and StateError as generator_of."""
    if not isinstance(root, Record) or root.short_name not in DISCRIMINATORS:
        return None
    return PublishedDiscriminator(kind=root.short_name, parameters=dict(_parameters(root)))


def average_of(root: Any) -> PublishedAverage | None:
    """Return a file's published average, an object or its state_dict(); else as generator_of."""
    if isinstance(root, Record) and root.short_name == AVERAGE:
        root = root.attributes
    elif not isinstance(root, dict) or "shadow_params" not in root:
        return None
    shadow = root.get("shadow_params")
    if not isinstance(shadow, list) or not all(isinstance(value, Tensor) for value in shadow):
        raise StateError("holds averages that are no list of tensors")
    num_updates = _count(root.get("num_updates"), "num_updates")
    return PublishedAverage(shadow=shadow, num_updates=num_updates)


def describe(root: Any) -> str:
    """Say in a few words what a file holds, for a person who gave the wrong one."""
    if isinstance(root, Record) and root.name.startswith("torch."):
        return f"a {root.short_name} of PyTorch, which is no whole network"
    if isinstance(root, Record):
        return f"a published {root.short_name}"
    if isinstance(root, dict) and root:
        if isinstance(root.get("kind"), str) and isinstance(root.get("format"), str):
            return f"a {shown(root['kind'])}"
        if "shadow_params" in root:
            return "a published average"
        return f"a dict of {', '.join(shown(str(key)) for key in list(root)[:3])}, ..."
    kinds: dict[type, str] = {dict: "an empty dict", list: "a list", tuple: "a list", str: "text"}
    kinds |= {Tensor: "a single tensor", int: "a number", float: "a number"}
    return kinds.get(type(root), "nothing")


def _count(value: object, name: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise StateError(f"has a {type(value).__name__} as its {name}, or a negative number")
    return value


def _modules(module: Record) -> dict[str, Record]:
    """Return the direct submodules of a module, in order."""
    inner = module.attributes.get("_modules")
    if not isinstance(inner, dict):
        raise StateError(f"holds a {module.short_name} that is no module")
    return {str(name): each for name, each in inner.items() if isinstance(each, Record)}


def _parameters(root: Record) -> Iterator[tuple[str, Tensor]]:
    """Yield names and values of all parameters and buffers, in the order of parameters()."""
    seen: set[int] = set()
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        # A module in many places, under names that grow, could take much time and memory.
        if id(module) in seen or len(seen) > MAX_MODULES or len(prefix) > MAX_PREFIX:
            raise StateError(f"holds the module {shown(prefix)} twice, or modules without end")
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            own = module.attributes.get(kind)
            if not isinstance(own, dict):
                raise StateError(f"holds a {module.short_name} that is no module")
            for name, value in own.items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
                elif value is not None:
                    raise StateError(f"holds no tensor as {shown(f'{prefix}{name}')}")
        inner = [(f"{prefix}{name}.", each) for name, each in _modules(module).items()]
        waiting.extend(reversed(inner))
