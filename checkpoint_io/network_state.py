"""Validate state dicts of networks, optimizers and loss scalers, then load them.

Files come from others and can be damaged: names, shapes, types and the numbers themselves are
compared with those of the network before anything of that size is allocated. A StateError is one
line that names the first thing that is wrong.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from checkpoint_io.pickle_scan import shown
from config.curriculum import Curriculum
from discriminators.discriminators import PyramidDiscriminator
from generators.generators import ImplicitGenerator3d

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
PUBLISHED_NUM_LAYERS = 8
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
MAX_COUNT = 2**62  # of steps and images


class StateError(ValueError):
    """The content of a file is damaged, or does not fit the network."""


def entry(content: Mapping[Any, Any], key: str, kind: type[T] | tuple[type[T], ...]) -> T:
    """Return the entry of that key; StateError if none is of that type (a bool is no number)."""
    if key not in content:
        raise StateError(f"lacks {key!r}")
    value = content[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StateError(f"has a {type(value).__name__} as {key!r}")
    return value


def count_entry(content: Mapping[Any, Any], key: str) -> int:
    """Return the entry of that key, a whole number of at least 0."""
    value = entry(content, key, int)
    if not 0 <= value < MAX_COUNT:
        raise StateError(f"has {value} as {key!r}")
    return value


def checked_tensor(name: str, value: object, shape: Sequence[int] | None) -> Tensor:
    """Return a floating-point tensor in float32; a shape of None takes any.

    Raises StateError if value is no such tensor, or not all of its numbers are finite.
    """
    if not isinstance(value, Tensor):
        raise StateError(f"has no tensor as {shown(name)}")
    if shape is not None and tuple(value.shape) != tuple(shape):
        raise StateError(f"has {shown(name)} of shape {list(value.shape)}, not {list(shape)}")
    if not value.dtype.is_floating_point:
        kind = str(value.dtype).removeprefix("torch.")
        raise StateError(f"has {shown(name)} of type {kind}, not float32")
    own = value.to(torch.float32, copy=True)
    if not own.isfinite().all():
        raise StateError(f"holds numbers that are not finite, in {shown(name)}: the run diverged, "
                         "or the file is damaged")  # fmt: skip
    return own


def tensor_entry(content: Mapping[Any, Any], key: str, shape: Sequence[int]) -> Tensor:
    """Return the entry of that key, a tensor of any type; StateError if its shape is another."""
    value = entry(content, key, Tensor)
    if tuple(value.shape) != tuple(shape):
        raise StateError(f"has {key!r} of shape {list(value.shape)}, not {list(shape)}")
    return value


def checked_state(module: nn.Module, state: object) -> dict[str, Tensor]:
    """Return state as a float32 state dict of module, which may be on the device "meta".

    Raises StateError if names, shapes or types do not fit, or numbers are not finite.
    """
    if not isinstance(state, Mapping):
        raise StateError("holds no parameters")
    expected = {name: value.shape for name, value in module.state_dict().items()}
    if getattr(state.get("pose_layer.weight"), "ndim", 0) == 4:  # of our older files, never used
        unused = {n: torch.zeros(expected[n]) for n in expected if n.startswith("pose_layer.")}
        state = {**state, **unused}
    missing = [name for name in expected if name not in state]
    extra = [str(name) for name in state if name not in expected]
    if missing or extra:
        first = f"lacks {missing[0]}" if missing else f"has {shown(extra[0])}, which is unknown"
        more = len(missing) + len(extra) - 1
        raise StateError(first + (f" ({more} more do not fit)" if more else ""))
    return {name: checked_tensor(name, state[name], shape) for name, shape in expected.items()}


def build_generator(curriculum: Curriculum, state: object) -> ImplicitGenerator3d:
    """Build a generator from state, on the CPU; StateError if it does not fit the curriculum."""
    names = state if isinstance(state, Mapping) else {}
    count = sum(is_layer(name) for name in names)
    if count != (curriculum.settings.num_layers or PUBLISHED_NUM_LAYERS):  # before making so many
        raise StateError(f"has {count} layers in its field")
    return filled(unfilled(curriculum.build_generator), state)


def build_discriminator(curriculum: Curriculum, state: object) -> PyramidDiscriminator:
    """Build a discriminator from state; StateError if it does not fit the curriculum."""
    return filled(unfilled(curriculum.build_discriminator), state)


def is_layer(name: object) -> bool:
    """Return whether name is that of a FiLM layer's weight in the field's trunk."""
    return isinstance(name, str) and bool(
        re.fullmatch(r"siren\.network\.\d+\.layer\.weight", name, re.ASCII)
    )


class _NoStart(TorchFunctionMode):
    """Skips random initialization, for which PyTorch would import its compiler (seconds)."""

    drawing = (Tensor.normal_, Tensor.uniform_, Tensor.mul, Tensor.mul_)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call func, unless it draws or scales the numbers of a parameter."""
        if func in self.drawing:
            return args[0]
        if func is torch.randn:
            func = torch.empty
        return func(*args, **(kwargs or {}))


def unfilled(make: Callable[[], Network]) -> Network:
    """Build a network on the device "meta", without memory; StateError if sizes exceed 64 bits."""
    try:
        with torch.device("meta"), _NoStart():
            return make()
    except (RuntimeError, OverflowError, TypeError) as error:
        raise StateError("belongs to networks that are too large to be made") from error


def filled(module: Network, state: object) -> Network:
    """Load checked state into a module on the device "meta"; StateError if it does not fit."""
    module.load_state_dict(checked_state(module, state), assign=True)
    return module


Moments = dict[int, dict[str, Tensor]]  # by position: step (), exp_avg and exp_avg_sq


def checked_moments(state: object, parameters: Sequence[Tensor]) -> Moments:
    """Return Adam's moments from a state dict, by position among parameters.

    Parameters of layers that were never used have none. Raises StateError if state is no state dict
    of Adam, or one of other parameters.
    """
    if not isinstance(state, Mapping):
        raise StateError("holds no optimizer")
    moments: Moments = {}
    for index, values in entry(state, "state", dict).items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise StateError(f"has an optimizer with a parameter {shown(str(index))}, which is "
                             "unknown")  # fmt: skip
        if not isinstance(values, dict):
            raise StateError(f"has an optimizer without moments of parameter {index}")
        moments[index] = _moments(index, values, parameters[index])
    return moments


def _moments(index: int, values: dict[str, Any], parameter: Tensor) -> dict[str, Tensor]:
    step = values.get("step")
    is_number = isinstance(step, (int, float)) or (isinstance(step, Tensor) and step.numel() == 1)
    count = float(step) if is_number else math.nan  # type: ignore[arg-type]  # a number by now
    if not 0 <= count < MAX_COUNT:
        raise StateError(f"has an optimizer without a step for parameter {index}")
    moments = {
        name: checked_tensor(f"{name} of parameter {index}", values.get(name), parameter.shape)
        for name in MOMENTS
    }
    return {"step": torch.tensor(count), **moments}


def load_moments(optimizer: torch.optim.Optimizer, state: object) -> None:
    """Load Adam's moments, not its rates and betas; StateError if they do not fit."""
    parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
    moments = checked_moments(state, parameters)
    for index, values in moments.items():
        for name in MOMENTS:
            # The fused implementation needs the memory layout of the parameter.
            like = torch.empty_like(parameters[index], requires_grad=False)
            values[name] = like.copy_(values[name])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def checked_scaler(state: object) -> dict[str, Any]:
    """Return the loss scale and its age, {} of a scaler that was off; StateError if damaged."""
    if not isinstance(state, Mapping):
        raise StateError("holds no scaler")
    if not state:
        return {}
    scale, age = entry(state, "scale", float), count_entry(state, "_growth_tracker")
    if not 0 < scale < math.inf:
        raise StateError(f"has a loss scale of {scale}")
    return {"scale": scale, "_growth_tracker": age}


def load_scaler(scaler: torch.amp.GradScaler, state: object) -> None:
    """Load the loss scale and its age, unless scaler is off; StateError as checked_scaler."""
    checked, own = checked_scaler(state), scaler.state_dict()  # {} where it is off
    if checked and own:
        scaler.load_state_dict({**own, **checked})
