"""BOUNDARY: networks and optimizers take over what a file says, once all of it has been checked.

Files are made by others and can be damaged: names, shapes, types and the numbers themselves are
compared with what the network needs before anything of that size is made. Every complaint is a
StateError, one line that names the first thing that is wrong.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from curriculum import Curriculum
from discriminators.discriminators import PyramidDiscriminator
from generators.generators import ImplicitGenerator3d
from pickle_data import shown

T = TypeVar("T")
Network = TypeVar("Network", bound=nn.Module)
PUBLISHED_NUM_LAYERS = 8
MOMENTS = ("exp_avg", "exp_avg_sq")  # of Adam
MAX_COUNT = 2**62  # of steps and images


class StateError(ValueError):
    """What a file says does not fit the network or is not what it should be."""


def entry(content: Mapping[Any, Any], key: str, kind: type[T] | tuple[type[T], ...]) -> T:
    """The entry of that key.

    Raises:
        StateError: there is none, or it is of another kind; a bool is no number.
    """
    if key not in content:
        raise StateError(f"lacks {key!r}")
    value = content[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StateError(f"has a {type(value).__name__} as {key!r}")
    return value


def count_entry(content: Mapping[Any, Any], key: str) -> int:
    """The entry of that key, a whole number of at least 0."""
    value = entry(content, key, int)
    if not 0 <= value < MAX_COUNT:
        raise StateError(f"has {value} as {key!r}")
    return value


def checked_tensor(name: str, value: object, shape: Sequence[int] | None) -> Tensor:
    """Value as a finite float32 tensor of its own.

    Raises:
        StateError: it is no tensor, or one of another shape (None: any), of whole numbers, or with
            numbers that are not finite.
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


def checked_state(module: nn.Module, state: object) -> dict[str, Tensor]:
    """State as a state dict of module; module may be on the device "meta".

    Raises:
        StateError: names, shapes, types or numbers are not right.
    """
    if not isinstance(state, Mapping):
        raise StateError("holds no parameters")
    expected = {name: value.shape for name, value in module.state_dict().items()}
    missing = [name for name in expected if name not in state]
    extra = [str(name) for name in state if name not in expected]
    if missing or extra:
        first = f"lacks {missing[0]}" if missing else f"has {shown(extra[0])}, which is unknown"
        more = len(missing) + len(extra) - 1
        raise StateError(first + (f" ({more} more do not fit)" if more else ""))
    return {name: checked_tensor(name, state[name], shape) for name, shape in expected.items()}


def build_generator(curriculum: Curriculum, state: object) -> ImplicitGenerator3d:
    """The curriculum's generator with the parameters of state; on the CPU.

    Raises:
        StateError: state does not fit the curriculum's networks.
    """
    names = state if isinstance(state, Mapping) else {}
    count = sum(is_layer(name) for name in names)
    if count != (curriculum.settings.num_layers or PUBLISHED_NUM_LAYERS):  # before making so many
        raise StateError(f"has {count} layers in its field")
    with torch.device("meta"):  # a wrong width then costs nothing
        generator = _built(curriculum.build_generator)
    return _filled(generator, state)


def build_discriminator(curriculum: Curriculum, state: object) -> PyramidDiscriminator:
    """The curriculum's discriminator with the parameters of state; on the CPU.

    Raises:
        StateError: state does not fit the curriculum's networks.
    """
    with torch.device("meta"):
        discriminator = _built(curriculum.build_discriminator)
    return _filled(discriminator, state)


def is_layer(name: object) -> bool:
    """Whether this is the name of a weight of the field's trunk; there is one in each layer."""
    return isinstance(name, str) and bool(
        re.fullmatch(r"siren\.network\.\d+\.layer\.weight", name, re.ASCII)
    )


def _built(make: Any) -> Any:
    try:
        return make()
    except (RuntimeError, OverflowError, TypeError) as error:  # widths beyond 64 bits
        raise StateError("belongs to networks that are too large to be made") from error


def _filled(module: Network, state: object) -> Network:
    module.load_state_dict(checked_state(module, state), assign=True)
    return module


def load_moments(
    optimizer: torch.optim.Optimizer, state: object, order: Sequence[nn.Parameter]
) -> None:
    """Take over Adam's moments; rates, betas and the implementation stay the optimizer's own.

    Args:
        optimizer: of ours; parameters that the file knows nothing of start afresh, as those of
            layers that were never used.
        state: an optimizer's state dict.
        order: the parameters that its numbers stand for; all of the optimizer's.

    Raises:
        StateError: state is none, or does not fit the parameters.
    """
    if not isinstance(state, Mapping):
        raise StateError("holds no optimizer")
    entries = entry(state, "state", dict)
    moments: dict[nn.Parameter, dict[str, Tensor]] = {}
    for index, values in entries.items():
        if type(index) is not int or not 0 <= index < len(order) or not isinstance(values, dict):
            raise StateError(
                f"has an optimizer of another network (its parameter {shown(str(index))})"
            )
        moments[order[index]] = _moments(index, values, order[index])
    own = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own["state"] = {i: moments[p] for i, p in enumerate(parameters) if p in moments}
    optimizer.load_state_dict(own)


def _moments(index: int, values: dict[str, Any], parameter: nn.Parameter) -> dict[str, Tensor]:
    step = entry(values, "step", cast(Any, (int, float, Tensor)))
    if isinstance(step, Tensor) and step.numel() != 1:
        raise StateError(f"has an optimizer without a step at parameter {index}")
    result = {"step": torch.tensor(float(step))}
    if not 0 <= float(step) < MAX_COUNT:
        raise StateError(f"has an optimizer with the step {float(step)} at parameter {index}")
    for name in MOMENTS:
        if name not in values:
            raise StateError(f"has an optimizer without {name!r} at parameter {index}")
        value = checked_tensor(f"the optimizer's {name} {index}", values[name], parameter.shape)
        # The fused implementation walks through memory: moments lie as their parameter does.
        result[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)
    return result
