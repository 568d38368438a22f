"""Start of a training run: the state to resume from, the curriculum, the pictures.

`resolve` works it out once, before any process is started; the processes only compare it.
"""

import contextlib
import dataclasses
import io
import json
import math
import pickle
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import datasets
from checkpoint_io import checkpoints, published_run
from checkpoint_io.network_state import count_entry
from config.curriculum import Curriculum
from config.schema import StageKeys, StageSettings
from datasets import ImageSet
from distributed import collectives
from distributed.processes import Place
from image_io.files import Listing
from system.errors import UsageError, nearest_path
from system.files import Stamp, stamp_of
from training import state
from training.options import TrainOptions, dataset_options
from training.state import STATE_FILE
from training.transfer import Networks, read_networks

OPTIONS_FILE = "options.json"
SHARE = 0.25  # of the free shared memory that the start of a run may take while the run goes on


@dataclass(slots=True, kw_only=True, eq=False)
class Start:
    """The beginning of a run, the same in every process.

    curriculum: the one to train: that of the command with the networks of a published run and,
        unless the command names others, with the pictures of the resumed run.
    listing: the pictures found.
    path: training state or published folder to resume from; None for a fresh run.
    content: content of that state until the networks have taken it; None for a fresh run.
    before: the curriculum of that state.
    step: steps done before the first one.
    seed, seed_before: of this run, and of the resumed one.
    own_state: stamp of the training state in the output folder; None if there was none.
    networks, transfer: the tensors of another run that a new one begins with until the networks
        have taken them, and a line about them; None and "" without --transfer.

    Processes that are started with one get it as a single block of shared memory, because a pipe
    would be filled while each of them still starts. In containers with little shared memory (Docker
    gives 64 MB, which NCCL needs as well) they start one after the other, and read it from their
    pipes.
    """

    typed: Curriculum
    curriculum: Curriculum
    listing: Listing
    path: Path | None
    content: dict[str, Any] | None
    before: Curriculum | None
    step: int
    seed: int
    seed_before: int
    own_state: Stamp | None
    networks: Networks | None = None
    transfer: str = ""
    packed: Tensor | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        if self.packed is None:
            names = [field.name for field in dataclasses.fields(self)]
            data = pickle.dumps({name: getattr(self, name) for name in names})
            self.packed = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if len(self.packed) <= shared_memory() * SHARE:
            with contextlib.suppress(RuntimeError):
                return _unpacked, (self.packed.share_memory_(),)
        return _unpacked, (self.packed.numpy(),)


def shared_memory() -> float:
    """Return the free bytes of the file system in which Linux keeps shared memory, else inf."""
    try:
        return shutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf


def _unpacked(packed: Any) -> Start:
    return Start(**pickle.loads(np.asarray(packed).tobytes()))


def resolve(typed: Curriculum, options: TrainOptions, place: Place) -> Start:
    """Find and read the state to resume from, and list the pictures.

    typed is the curriculum as it was typed, place that of this process or of the first that it will
    start.

    Raises:
        UsageError: there is no state to resume from, it cannot be used, output_dir holds another
            run, or there are no pictures.
    """
    own_state = stamp_of(options.output_dir / STATE_FILE)  # before all else
    path = content = None
    if options.transfer is not None and options.load_dir is not None:
        raise UsageError("--transfer begins a new run and --load_dir goes on with one: give either")
    try:
        path = find_state(options.output_dir, options.load_dir, is_resumed=options.is_resumed)
    except UsageError:
        if place.is_main:  # other machines may lack the file
            raise
    if path is not None and path.is_dir():
        run = published_run.open_run(path)
        adapted = run.adapt(typed)
        if place.is_main:
            published_run.note_changes(path, typed, adapted)
        typed, content = adapted, state.published_content(run, adapted)
    elif path is not None:
        content = state.read_state(path, typed)
    start = _start(typed, options, path, content, own_state)
    if options.transfer is not None:
        _add_networks(start, options.transfer, is_main=place.is_main)
    return start


def _add_networks(start: Start, source: Path, *, is_main: bool) -> None:
    """Read the networks that a new run begins with; a resumed run has its own."""
    if start.path is not None:
        start.transfer = f"note: --transfer is not used again: {start.path} is resumed"
        return
    try:
        start.networks, start.transfer = read_networks(source, start.curriculum)
    except UsageError:
        if is_main:  # the other ranks get its networks, and other machines may lack the file
            raise


def _start(
    typed: Curriculum,
    options: TrainOptions,
    path: Path | None,
    content: dict[str, Any] | None,
    own_state: Stamp | None,
) -> Start:
    """Take from content what the command leaves open, and list the pictures."""
    curriculum, before, step, seed_before = typed, None, 0, 0
    if content is not None:
        with checkpoints.complaints(path or Path(STATE_FILE)):
            step = count_entry(content, "step")
        before = checkpoints.curriculum_of(path or Path(STATE_FILE), content)
        seed_before = state.seed_of(content)
        if not options.names_pictures:
            curriculum = with_pictures_of(typed, before)
        if curriculum.settings.learnable_dist and before.settings.learnable_dist:
            curriculum = curriculum.with_poses(before.poses())
    return Start(
        typed=typed,
        curriculum=curriculum,
        listing=_find_images(curriculum, typed),
        path=path,
        content=content,
        before=before,
        step=step if options.set_step is None else options.set_step,
        seed=seed_before if options.seed is None else options.seed,
        seed_before=seed_before,
        own_state=own_state,
    )


def _find_images(curriculum: Curriculum, typed: Curriculum) -> Listing:
    """List the pictures; if they are missing, say whether the resumed run named them."""
    try:
        return datasets.find_images(dataset_options(curriculum))
    except UsageError as error:
        if curriculum.settings.dataset_path == typed.settings.dataset_path:
            raise
        raise UsageError(f"the pictures that the run learned from before: {error}") from error


def find_state(output_dir: Path, load_dir: Path | None, *, is_resumed: bool) -> Path | None:
    """Return the training state, or published folder, to resume from; None to start afresh.

    Raises:
        UsageError: there is none in load_dir, or output_dir holds another run.
    """
    own = output_dir / STATE_FILE
    if output_dir.exists() and not output_dir.is_dir():
        raise UsageError(f"--output_dir {output_dir}: is not a folder")
    if is_resumed and own.exists():
        return own
    if load_dir is None or load_dir.resolve() != output_dir.resolve():
        if own.exists():
            raise UsageError(
                f"--output_dir {output_dir} holds a run already; use --resume, or give another"
            )
        if (output_dir / "generator.pth").exists():  # it is written after the state
            raise UsageError(f"--output_dir {output_dir}: holds a generator.pth, which training "
                             "would replace; give another folder")  # fmt: skip
    if load_dir is None:
        return None
    found = load_dir / STATE_FILE
    if found.is_file():
        return found
    if published_run.is_one(load_dir):
        return load_dir
    if (load_dir / "generator.pth").is_file():
        raise UsageError(
            f"--load_dir {load_dir}: holds only exported networks; training resumes from "
            f"{STATE_FILE}, which also holds the optimizers and the step"
        )
    hint = nearest_path(load_dir) if not load_dir.exists() else ""
    raise UsageError(f"--load_dir {load_dir}: there is no {STATE_FILE} in it.{hint}")


def agree(place: Place, start: Start, options: TrainOptions) -> Start:
    """Return the start that all ranks share, after comparing theirs.

    Machines may have disks of their own, and only one of them may hold the newest state: all then
    resume from that.

    Raises:
        UsageError: machines were given different commands (paths may differ); names what differs.
    """
    _require_same_command(start.typed, options)
    if place.world_size == place.local_world_size:  # one machine, so one state
        return start
    own = options.output_dir / STATE_FILE
    is_offered = start.content is not None and (
        place.is_main or (place.local_rank == 0 and start.path == own)
    )
    content, buffer = start.content, io.BytesIO()
    newest = count_entry(content, "step") if is_offered and content is not None else -1
    steps = collectives.values_of_all(newest)
    source = steps.index(max(steps))
    if steps[source] < 0:
        return start
    if place.rank == source:
        torch.save(content, buffer)
    data = collectives.broadcast_bytes(buffer.getvalue(), source)
    if place.rank == source:
        return start
    content = torch.load(io.BytesIO(data), weights_only=True)
    return _start(start.typed, options, start.path, content, start.own_state)


def _require_same_command(curriculum: Curriculum, options: TrainOptions) -> None:
    source = {str(k): v for k, v in curriculum.source.items() if k != "dataset_path"}
    given = {
        "--curriculum, --set or published --load_dir": [curriculum.name, source],
        "--seed": options.seed,
        "--n_epochs": options.n_epochs,
        "--max_steps": options.max_steps,
        "--set_step": options.set_step,
        "--eval_freq": options.fid.interval,
        "--eval_images": options.fid.num_images,
    }
    for flag, value in given.items():
        text = json.dumps(value, sort_keys=True, default=str)
        rank = first_other(collectives.values_of_all(zlib.crc32(text.encode())))
        if rank is not None:
            raise UsageError(
                f"rank {rank} was started with another {flag} than rank 0; give all machines the "
                "same command"
            )


def first_other(values: Sequence[object]) -> int | None:
    """Return the first rank whose value is not that of rank 0."""
    return next((rank for rank, value in enumerate(values) if value != values[0]), None)


def require_unchanged(start: Start, output_dir: Path) -> None:
    """Check, with the lock of output_dir held, that no other run has saved there since resolve.

    Raises:
        UsageError: another run has.
    """
    if stamp_of(output_dir / STATE_FILE) != start.own_state:
        raise UsageError(
            f"--output_dir {output_dir}: another run has saved in it since this one was started; "
            "start again"
        )


def with_pictures_of(curriculum: Curriculum, before: Curriculum) -> Curriculum:
    """Return the curriculum with the dataset path of the resumed run.

    Another curriculum than the resumed run's keeps the path that it names itself.
    """
    path, own = before.settings.dataset_path, curriculum.settings.dataset_path
    is_other = own is not None and before.name != curriculum.name
    if path is None or path == own or is_other:
        return curriculum
    return curriculum.with_dataset_path(path)


def changes(before: Curriculum, now: Curriculum) -> list[str]:
    """List the differences as texts such as "fov 30 -> 12" and "3000.batch_size 16 -> 8"."""
    pairs: list[tuple[str, object, object]] = [("curriculum", before.name, now.name)]
    pairs += _differing("", before.settings, now.settings)
    old, new = dict(before.stages), dict(now.stages)
    for first in sorted({*old, *new}):
        pairs += _differing(f"{first}.", old.get(first), new.get(first))
    pairs.append(("end", before.end, now.end))
    return [f"{name} {_shown(a)} -> {_shown(b)}" for name, a, b in pairs if a != b]


def _differing(prefix: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Yield name and both values of each field, or the whole stage if one of the two is None."""
    if before is None or now is None:
        yield f"stage {prefix.rstrip('.')}", before, now
        return
    is_stage = isinstance(now, StageSettings)
    for field in dataclasses.fields(StageKeys if is_stage else before):
        yield f"{prefix}{field.name}", getattr(before, field.name), getattr(now, field.name)
    if is_stage:
        for key in sorted({*before.changed, *now.changed}):
            yield f"{prefix}{key}", before.changed.get(key), now.changed.get(key)


def _shown(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, StageSettings):
        return f"{value.img_size} px"
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_record(images: Mapping[int, ImageSet]) -> dict[str, Any]:
    """Return number and checksum of the pictures by image size, for options.json."""
    return {
        str(size): {"count": len(found), "checksum": found.checksum}
        for size, found in images.items()
    }


def data_changes(folder: Path, now: Mapping[str, Any]) -> list[str]:
    """List how the pictures differ from those of the run in folder, at the sizes both have.

    The list is empty if options.json of that run does not say.
    """
    try:
        before = json.loads((folder / OPTIONS_FILE).read_text("utf-8"))["images"]
        pairs = [(before[size], now[size]) for size in now if size in before]
        counts = [(old["count"], new["count"]) for old, new in pairs]
        sums = [(old["checksum"], new["checksum"]) for old, new in pairs]
    except (OSError, ValueError, KeyError, TypeError):  # of an earlier version, or damaged
        return []
    for old, new in counts:
        if old != new:
            return [f"number of pictures {old} -> {new}"]
    return ["the pictures themselves"] if any(old != new for old, new in sums) else []
