"""Write and read this project's .pth files: generators, discriminators, fits, training states.

All are plain dicts of tensors and numbers. `safe_load` reads them, as it reads published ones:
loading a file never runs code, and its content is checked before it is used. Files are written
whole or not at all.
"""

import contextlib
import hashlib
import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from checkpoint_io import network_state, published, safe_load
from checkpoint_io.network_state import StateError, checked_tensor, count_entry, entry
from checkpoint_io.pickle_scan import shown
from checkpoint_io.published import PublishedGenerator
from config import curriculum as curricula
from config.curriculum import Curriculum
from discriminators.discriminators import PyramidDiscriminator
from generators.fields import default_chunk
from generators.generators import ImplicitGenerator3d
from generators.trajectories import Camera, SceneObject
from generators.tuning import MAX_RANK, Tuning, num_factors, weight_changes
from siren.film import Film
from siren.siren import FilmSiren
from system.errors import UsageError
from system.files import replaced

FORMAT, FORMAT_VERSION = "pi-gan", 1
MAX_REASON = 200  # characters of another message within a message
Average = Literal["ema", "ema2", "none"]


def save(path: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write content to a file of that kind, for `read`; an earlier file is replaced."""
    header = {"format": FORMAT, "version": FORMAT_VERSION, "kind": kind}
    buffer = io.BytesIO()  # torch.save reports a full disk by an error of its own kind
    torch.save({**header, **content}, buffer)
    with replaced(path) as file:
        file.write(buffer.getbuffer())


def read(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a file of ours; UsageError if it is no whole file of this kind."""
    return _own(path, safe_load.read(path), kind)


def _own(path: Path, root: Any, kind: str) -> dict[str, Any]:
    """Return the content of a file of ours; root is what safe_load.read returned."""
    if not isinstance(root, dict) or root.get("format") != FORMAT:
        raise UsageError(f"{path}: is not a file of this project; it holds "
                         f"{published.describe(root)}")  # fmt: skip
    with complaints(path):
        version, own_kind = entry(root, "version", int), shown(entry(root, "kind", str))
        if version != FORMAT_VERSION:
            raise StateError(f"has format {version}, this code reads {FORMAT_VERSION}")
        if own_kind != kind:
            raise StateError(f"holds a {own_kind}, not a {kind}")
        return root


@contextlib.contextmanager
def complaints(path: Path) -> Iterator[None]:
    """Turn a StateError about a file's content into a UsageError that names the file."""
    try:
        yield
    except StateError as error:
        raise UsageError(f"{path}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SavedGenerator:
    """A generator for rendering, in evaluation mode and without gradients.

    curriculum, step: the curriculum of its training and the updates done. average: its parameters
    are one of the averages, or the raw ones ("none"). path: the file of the parameters.
    is_published: it is a published file, which does not say its curriculum.
    """

    generator: ImplicitGenerator3d
    curriculum: Curriculum
    step: int
    average: Average
    path: Path
    is_published: bool = False

    @property
    def last_step(self) -> int:
        """Return the number of the last update, from 0: its stage is the one that was trained."""
        return max(0, self.step - 1)


def load_generator(
    path: Path | str,
    *,
    ema: Average = "ema",
    device: torch.device | str = "cpu",
    curriculum: Curriculum | None = None,
    published_curriculum: Curriculum | None = None,
) -> SavedGenerator:
    """Load a generator, with averaged parameters if the average lies beside it.

    Args:
        path: a `generator.pth`, ours or a published one, or one of the averages itself.
        ema: which parameters to take: the average of decay 0.999 ("ema") or 0.9999 ("ema2"), or the
            raw ones ("none"). Without such a file they are the raw ones; `average` says so.
        device: device of the generator.
        curriculum: the curriculum that the file must have been trained with; None takes any.
        published_curriculum: if curriculum is None, that of a published file, whose networks
            replace its own.

    Raises:
        UsageError: the file cannot be read, was trained with another curriculum, or is a published
            one and neither curriculum is given.
    """
    path = Path(path)
    file, average = averaged_file(path, ema)
    root = safe_load.read(file)
    is_published = not (isinstance(root, dict) and "format" in root)
    build = _published_generator if is_published else _own_generator
    named = (curriculum or published_curriculum) if is_published else curriculum
    generator, own, step = build(file, root, named)
    generator.points_per_chunk = default_chunk(torch.device(device))
    return SavedGenerator(
        generator=generator.to(device).eval().requires_grad_(False),
        curriculum=own,
        step=step,
        average=average,
        path=file,
        is_published=is_published,
    )


def _own_generator(
    file: Path, root: Any, curriculum: Curriculum | None
) -> tuple[ImplicitGenerator3d, Curriculum, int]:
    """Return the generator of a file of ours, its curriculum and its step."""
    content = _own(file, root, "generator")
    own = curriculum_of(file, content)
    if curriculum is not None and curriculum.name != own.name:
        raise UsageError(
            f"--curriculum {curriculum.name}: {file} was trained with {own.name}; "
            "leave the flag out"
        )
    with complaints(file):
        step = count_entry(content, "step")
        return network_state.build_generator(own, entry(content, "state", dict)), own, step


def curriculum_of(path: Path, content: Mapping[str, Any]) -> Curriculum:
    """Return the curriculum in a file of ours; UsageError if there is none that we understand."""
    with complaints(path):
        name, source = entry(content, "curriculum_name", str), entry(content, "curriculum", dict)
    try:
        return curricula.build(shown(name), source)
    except (UsageError, OverflowError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:MAX_REASON]  # a tensor's text has lines
        raise UsageError(f"{path}: carries a curriculum that cannot be used ({reason})") from error


def _published_generator(
    file: Path, root: Any, curriculum: Curriculum | None
) -> tuple[ImplicitGenerator3d, Curriculum, int]:
    """Return the generator of a published file, the curriculum with its networks, its step."""
    if curriculum is None:
        raise UsageError(f"{file}: a published file does not say its curriculum; name it")
    with complaints(file):
        average = published.average_of(root)
        raw = file if average is None else beside(file, "generator.pth")
        if not raw.is_file():
            raise StateError(f"is an average without names; {raw.name} must lie beside it")
        found = _published_of(raw, root if average is None else safe_load.read(raw))
        state, step = found.parameters, found.step
        if average is not None:
            state = found.averaged(average)
            step = step if average.num_updates is None else average.num_updates
        adapted = found.adapt(curriculum)
        return network_state.build_generator(adapted, state), adapted, step


def _published_of(file: Path, root: Any) -> PublishedGenerator:
    with complaints(file):
        found = published.generator_of(root)
    if found is None:
        raise UsageError(f"{file}: holds {published.describe(root)}, not a generator")
    return found


def load_discriminator(
    path: Path, curriculum: Curriculum
) -> tuple[Curriculum, PyramidDiscriminator]:
    """Load a discriminator, in evaluation mode on the CPU; return its curriculum as well.

    The curriculum is the given one; for a published file, with the discriminator of the file.
    Raises UsageError if the file cannot be read, or holds no discriminator of the curriculum.
    """
    root = safe_load.read(path)
    with complaints(path):
        found = published.discriminator_of(root)
        if found is not None:
            curriculum, state = found.adapt(curriculum), found.parameters
        else:
            state = entry(_own(path, root, "discriminator"), "state", dict)
        return curriculum, network_state.build_discriminator(curriculum, state).eval()


def pose_critic(saved: SavedGenerator) -> PyramidDiscriminator | None:
    """Load the discriminator beside a generator, if it has learned to predict poses."""
    path = beside(saved.path, "discriminator.pth")
    if saved.curriculum.settings.pos_lambda == 0 or not path.is_file():
        return None
    _, critic = load_discriminator(path, saved.curriculum)
    return critic.to(saved.generator.device)


def beside(path: Path, name: str) -> Path:
    """Return the file called name beside a generator or average, with the same `05--` before it."""
    return path.with_name(re.sub(r"(generator|ema2?)?\.pth$", "", path.name) + name)


def averaged_file(path: Path, ema: Average) -> tuple[Path, Average]:
    """Return the file to read for a generator's path, and which parameters that file holds."""
    for average in ("ema2", "ema"):
        if path.name.endswith(f"{average}.pth"):
            return path, average
    if ema == "none" or not path.name.endswith("generator.pth"):
        return path, "none"
    file = beside(path, f"{ema}.pth")
    return (file, ema) if file.is_file() else (path, "none")


def save_fit(
    path: Path, fit: SceneObject, saved: SavedGenerator, tuning: Tuning | None = None
) -> None:
    """Write an object and a camera that were fitted to a photo, for the same generator alone.

    tuning: the changes of weights of the object, which its film has too.
    """
    content = {
        "generator": fingerprint(saved.generator),
        "frequencies": fit.film.frequencies.cpu(),
        "phase_shifts": fit.film.phase_shifts.cpu(),
        **dict(zip(("pitch", "yaw", "fov_degrees"), fit.camera[:3], strict=True)),
        **({} if tuning is None else {"rank": tuning.rank, "factors": tuning.factors.cpu()}),
    }
    save(path, "fit", content)


def load_fit(path: Path, saved: SavedGenerator) -> SceneObject:
    """Read what save_fit wrote, on the generator's device.

    Its name is the file's, or the folder's where inverse_render.py called the file fit.pth. Raises
    UsageError if the file cannot be read, or was fitted with another generator.
    """
    content = read(path, "fit")
    siren, device = saved.generator.siren, saved.generator.device
    with complaints(path):
        if entry(content, "generator", str) != fingerprint(saved.generator):
            raise StateError(f"was fitted with another generator than {saved.path}")
        films = [
            checked_tensor(name, content.get(name), (1, siren.num_features)).to(device)
            for name in ("frequencies", "phase_shifts")
        ]
        pitch, yaw, fov = (entry(content, n, float) for n in ("pitch", "yaw", "fov_degrees"))
        if not (math.isfinite(pitch) and math.isfinite(yaw) and 0 < fov < 180):
            raise StateError(f"has a camera at pitch {pitch}, yaw {yaw}, angle of view {fov}")
        changes = _weight_changes(content, siren)
    name = path.absolute().parent.name if path.name == "fit.pth" else path.stem
    film = Film(films[0], films[1], changes)
    return SceneObject(name, film, Camera(pitch, yaw, fov))


def _weight_changes(content: Mapping[Any, Any], siren: FilmSiren) -> Tensor | None:
    """Return the changes of weights (1, W) in a fit, None if it was not tuned."""
    if "rank" not in content and "factors" not in content:
        return None
    rank = entry(content, "rank", int)
    if not 1 <= rank <= MAX_RANK:
        raise StateError(f"has changes of weights of rank {rank}, not 1 to {MAX_RANK}")
    factors = checked_tensor("factors", content.get("factors"), (num_factors(siren, rank),))
    device = next(siren.parameters()).device
    return weight_changes(siren, Tuning(rank, factors.to(device)))


def fingerprint(generator: nn.Module) -> str:
    """Return a hash of all parameters, which is the same on every device."""
    digest = hashlib.sha256()
    for name, value in generator.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
