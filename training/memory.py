"""Estimate a training step's peak memory, and refuse curricula that cannot fit.

The estimate is the maximum over three phases of a step: rendering the fakes of the whole batch
without gradients; the discriminator's update on real images and fakes; the generator's gradients
through the field, for one split of the batch. That phase recomputes the field's layers in chunks
and holds one chunk at a time. The factors were fitted to the bytes counted in steps of all presets
on fake tensors (CUDA) and to measured peaks (CPU).
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch

from checkpoint_io.network_state import unfilled
from config.curriculum import Curriculum
from discriminators.discriminators import PyramidDiscriminator
from distributed.processes import Place
from generators.generators import ImplicitGenerator3d
from generators.volumetric_rendering import RenderOptions, rays_that_hit
from siren.fused import cpu, cuda, eager
from system import machine
from system.errors import UsageError
from system.machine import GIB
from training import previews
from training.setup import choose_precision

FLOAT = 4  # bytes of a number; HALF of one in half precision
HALF = 2
PLAIN_POINT = 65  # bytes per point that rendering without gradients holds
GRAPH_POINT = 91  # bytes per point that rendering with gradients keeps
PLAIN_OBJECT = 1.2  # copies of an object's folded field weights without gradients
GRAPH_OBJECT = 3.2  # with gradients
CRITIC = 4.8  # times what enters the discriminator's rectifiers, in its own update
CRITIC_OF_SPLIT = 2.6  # the same for the fakes of a split, in the generator's update
KERNEL_CHUNK = 2**25  # numbers of a layer's output in one chunk of the kernels' backward pass
KERNEL_SUMS = 512 * 128  # rows of the kernels' partial sums
CPU_HOLES = 1.4  # held by the C library, per byte that lives; see machine.keep_freed_memory
PROCESS_BYTES = 480 * 2**20  # Python, PyTorch and its libraries
ESTIMATE_FACTOR = 1.5  # how far the estimate may be off
PREVIEW_BYTES = 3 * FLOAT * previews.COUNT  # per pixel: as many as are shown at once

FieldPath = Literal["kernels", "eager", "cpu"]


class Way(NamedTuple):
    """A process's implementation of the field and its extra copies, which decide its memory.

    is_half: products have operands in half precision.
    is_alone: the only process; others copy the discriminator before each step.
    """

    path: FieldPath
    is_half: bool
    is_alone: bool

    @property
    def operand_bytes(self) -> int:
        """Bytes of a number that products take."""
        return HALF if self.is_half else FLOAT

    @classmethod
    def at(cls, place: Place, curriculum: Curriculum) -> "Way":
        """Return how a process at place computes."""
        wanted = curriculum.settings.precision
        dtype = choose_precision(wanted, place.device, is_scaled=False).autocast_dtype
        path = field_path(place.device, curriculum.field_width(), dtype)
        return cls(path, is_half=dtype is not None, is_alone=place.world_size == 1)


def field_path(device: torch.device, width: int, dtype: torch.dtype | None) -> FieldPath:
    """Return the implementation of a field of this width under autocast to dtype."""
    if device.type != "cuda":
        return "cpu"
    with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
        return "kernels" if cuda.choose(device, width).blocks else "eager"


def estimated_bytes(curriculum: Curriculum, start: int, way: Way) -> int:
    """Return the estimated peak, in bytes, of one process in the stage of step start."""
    stage = curriculum.stage_settings(start)
    generator = unfilled(curriculum.build_generator)
    discriminator = unfilled(curriculum.build_discriminator)
    of_generator = sum(p.numel() for p in generator.parameters())
    of_discriminator = sum(p.numel() for p in discriminator.parameters())
    # Parameter, gradient, two moments; two averages; copies and the joined gradients.
    lasting = 4 * (of_generator + of_discriminator) + 2 * of_generator
    lasting += 0 if way.is_alone else 4 * of_discriminator
    images = -(-stage.batch_size // stage.batch_split)
    critic = (HALF if way.is_half else FLOAT) * _rectified(discriminator, stage.img_size)
    points = _rays(curriculum.at(start).render) * stage.num_steps  # of an image, in one pass
    passes = 2 if stage.settings.hierarchical_sample else 1
    siren = generator.siren
    folded = FLOAT * siren.hidden_dim**2 * len(siren.network)
    plain = PLAIN_OBJECT * folded + PLAIN_POINT * passes * points
    graph = GRAPH_OBJECT * folded + (GRAPH_POINT + _kept_inputs(generator)) * passes * points
    if way.path == "eager":  # of one chunk: a layer's input and output, and phases in float32
        numbers = siren.hidden_dim * stage.batch_size * points
        eager_chunk = (2 * way.operand_bytes + 1.5 * FLOAT) * min(numbers, eager.CHUNK_NUMBERS)
    else:
        eager_chunk = 0.0
    most = max(
        stage.batch_size * plain + eager_chunk,
        stage.batch_size * CRITIC * critic,
        images * graph
        + max(
            _chunk(generator, images * points, way),
            images * (CRITIC if stage.settings.shares_fakes else CRITIC_OF_SPLIT) * critic,
        ),
    )
    if way.path == "cpu":
        return round(PROCESS_BYTES + CPU_HOLES * (FLOAT * lasting + most))
    return round(FLOAT * lasting + most)


def _rectified(discriminator: PyramidDiscriminator, image_size: int) -> int:
    """Return how many numbers of one image enter the discriminator's rectifiers."""
    sizes = discriminator.image_sizes()
    widths = discriminator.level_widths[-1 - sizes.index(image_size) :]
    numbers = widths[0] * image_size**2
    if len(widths) > 2:  # while a level fades in, the half-size image enters as well
        numbers += widths[1] * (image_size // 2) ** 2
    for width in widths[1:]:
        after_second = image_size // 2 if discriminator.is_strided else image_size
        numbers += width * (image_size**2 + after_second**2)
        image_size //= 2
    return numbers


def _rays(options: RenderOptions) -> int:
    """Return how many rays of an image meet the scene."""
    return options.image_size**2 if options.scene_radius is None else len(rays_that_hit(options))


def _kept_inputs(generator: ImplicitGenerator3d) -> int:
    """Return bytes per point of what the field keeps besides its points, for its gradients."""
    siren = generator.siren
    channels = 0 if siren.embedding_shape is None else siren.embedding_shape[0]
    return channels * (3 * FLOAT + HALF)


def _chunk(generator: ImplicitGenerator3d, points: int, way: Way) -> int:
    """Return bytes of the layers that live at once in the field's backward pass."""
    siren = generator.siren
    width, layers = siren.hidden_dim, len(siren.network) + 1
    numbers = width * points
    if way.path == "kernels":
        sums = FLOAT * KERNEL_SUMS * width
        return HALF * 2 * layers * min(numbers, KERNEL_CHUNK) + sums
    if way.path == "eager":
        # Sines and slopes of all layers, and the gradient of the first layer's phases.
        a_number = way.operand_bytes * (2 * layers + 1.5) + FLOAT
        return math.ceil(a_number * min(numbers, eager.CHUNK_NUMBERS))
    return FLOAT * 4 * layers * min(numbers, cpu.CHUNK_NUMBERS) * torch.get_num_threads()


def require_memory(curriculum: Curriculum, places: Sequence[Place]) -> None:
    """Refuse a curriculum that cannot fit; the estimate is trusted within ESTIMATE_FACTOR.

    Raises:
        UsageError: a stage, or a preview, needs far more memory than there is.
    """
    device = places[0].device
    if device.type == "mps":  # shares its memory with the machine by rules of its own
        return
    processes = 1 if device.type == "cuda" else places[0].local_world_size
    there = min(machine.memory_bytes(place.device) or math.inf for place in places)
    way = Way.at(places[0], curriculum)
    for start, stage in curriculum.stages:
        needed = processes * estimated_bytes(curriculum, start, way)
        if needed > ESTIMATE_FACTOR * there:
            split = min(stage.batch_size, math.ceil(stage.batch_split * needed / there))
            raise UsageError(
                f"curriculum {curriculum.name}, stage {start}: needs about {needed / GIB:.0f} GiB, "
                f"and there are {there / GIB:.0f}; try --set {start}.batch_split={split}, a "
                "smaller batch_size, or fewer num_steps"
            )
    size = curriculum.settings.preview_size
    what = f"curriculum {curriculum.name}: preview_size {size}"
    machine.require_memory(what, PREVIEW_BYTES * size**2, device)
