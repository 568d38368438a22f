"""Start a new run from the networks of another one: --transfer.

Tensors are copied where name and shape fit; the others keep their fresh values. Optimizers, step
and schedules begin anew, so the first stage fades in again. Objects become as large as box_side
says, and the density head is scaled so that they stay as opaque as they were.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from checkpoint_io import checkpoints
from checkpoint_io.network_state import unfilled
from config.curriculum import Curriculum
from siren.siren import FilmSiren
from system.errors import UsageError, nearest_path
from training.adversarial import AdversarialGame

MOST_NAMED = 3  # tensors that the line names
UNSCALED_SIDE = 2  # of the cube [-1, 1], that of a field without box_side
Networks = dict[str, dict[str, Tensor]]  # tensors by name, of "generator" and "discriminator"


def read_networks(source: Path, curriculum: Curriculum) -> tuple[Networks, str]:
    """Return the tensors of another run that fit a curriculum's networks, and a line about them.

    source is the folder of a run, or the file of a generator, ours or a published one; averaged
    weights are taken if they are there. curriculum is that of the new run.

    Raises:
        UsageError: there is no generator, a file cannot be read, or fewer than half of the
            generator's tensors fit.
    """
    path = source / "generator.pth" if source.is_dir() else source
    if not path.is_file():
        if source.exists():
            raise UsageError(f"--transfer {source}: there is no generator.pth in it")
        raise UsageError(f"--transfer {source}: no such folder or file.{nearest_path(source)}")
    saved = checkpoints.load_generator(path, published_curriculum=curriculum)
    found: dict[str, nn.Module] = {"generator": saved.generator}
    beside = source / "discriminator.pth"
    if source.is_dir() and beside.is_file():
        found["discriminator"] = checkpoints.load_discriminator(beside, saved.curriculum)[1]
    generator = unfilled(curriculum.build_generator)
    own = {
        "generator": generator.state_dict(),
        "discriminator": unfilled(curriculum.build_discriminator).state_dict(),
    }
    networks: Networks = {}
    parts = []
    for name, expected in own.items():
        state = found[name].state_dict() if name in found else {}
        if name == "generator":
            _rescale_head(state, saved.generator.siren, generator.siren)
        networks[name] = _fitting(state, expected)
        parts.append(f"{name} {_counted(networks[name], expected)}")
    count, total = len(networks["generator"]), len(own["generator"])
    if 2 * count < total:
        raise UsageError(f"--transfer {source}: only {count} of {total} tensors of the generator "
                         f"have the shapes of curriculum {curriculum.name}; its model, hidden_dim "
                         f"and mapping_hidden_dim must be those of {path}")  # fmt: skip
    return networks, f"transfer from {path.parent if source.is_dir() else path}: {'; '.join(parts)}"


def _rescale_head(state: dict[str, Any], source: FilmSiren, field: FilmSiren) -> None:
    """Change a generator's state so that objects of source keep their shape and opacity in field.

    A density head is left out where one field has signed distances and the other has not.
    """
    for name in ("siren.final_layer.weight", "siren.final_layer.bias"):
        head = state.pop(name)
        if (source.surface is None) == (field.surface is None):
            state[name] = _head_per_side(source) / _head_per_side(field) * head


def _head_per_side(field: FilmSiren) -> float:
    """Return what an output of 1 of the density head is in a scene whose box has a side of 1.

    That is the optical depth of the box, or a signed distance in sides of the box.
    """
    side = field.box_side or UNSCALED_SIDE
    return field.density_scale * side if field.surface is None else field.density_scale / side


def _fitting(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: tensor
        for name, tensor in state.items()
        if name in expected and tensor.shape == expected[name].shape
    }


def _counted(fitting: Mapping[str, Tensor], expected: Mapping[str, Any]) -> str:
    """Return text such as "24 of 25 tensors, fresh: final_layer.weight"."""
    fresh = [name for name in expected if name not in fitting]
    if not fitting:
        return "all fresh"
    if not fresh:
        return f"all {len(expected)} tensors"
    more = f" and {len(fresh) - MOST_NAMED} more" if len(fresh) > MOST_NAMED else ""
    names = ", ".join(fresh[:MOST_NAMED])
    return f"{len(fitting)} of {len(expected)} tensors, fresh: {names}{more}"


def load_networks(networks: Networks, game: AdversarialGame) -> None:
    """Copy tensors from read_networks into the networks of a game, and into its averages."""
    game.generator.load_state_dict(networks["generator"], strict=False)
    game.discriminator.load_state_dict(networks["discriminator"], strict=False)
    values = [parameter.detach() for parameter in game.generator.parameters()]
    for average in game.averages:
        average.load_state_dict({"shadow": values, "num_updates": 0})
