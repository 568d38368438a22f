"""BOUNDARY: where a training run ends, and which of its limits says so."""

from typing import NamedTuple

from config.curriculum import Curriculum


class Ending(NamedTuple):
    """The last step, None for a run without one, and what ends it there, for a person."""

    step: int | None
    reason: str

    def is_reached(self, step: int) -> bool:
        """Whether nothing is left to do after that many steps."""
        return self.step is not None and step >= self.step

    def __str__(self) -> str:
        return "has no end" if self.step is None else f"ends at step {self.step}: {self.reason}"


def ending(
    curriculum: Curriculum,
    *,
    first_step: int,
    num_images: int,
    world_size: int,
    max_steps: int | None,
    n_epochs: int | None,
) -> Ending:
    """The earliest of the curriculum's end, --max_steps and --n_epochs.

    Args:
        curriculum: what is trained.
        first_step: steps done before; epochs are counted from there.
        num_images: of the data set.
        world_size: number of processes, each of which takes a batch.
        max_steps: the last step; None for no limit.
        n_epochs: passes over the data; None for no limit.
    """
    limits = [Ending(curriculum.end, "the end of the schedule")]
    limits.append(Ending(max_steps, f"--max_steps {max_steps}"))
    if n_epochs is not None:
        step = first_step + _steps(curriculum, first_step, n_epochs * num_images, world_size)
        limits.append(Ending(step, f"--n_epochs {n_epochs} over {num_images} pictures"))
    return min(
        (limit for limit in limits if limit.step is not None),
        key=lambda limit: limit.step or 0,
        default=Ending(None, ""),
    )


def _steps(curriculum: Curriculum, first_step: int, num_images: int, world_size: int) -> int:
    """Steps from first_step on until so many images were seen; batches change by stage."""
    step, images = first_step, 0
    for upper in [start for start, _ in curriculum.stages if start > first_step]:
        batch = curriculum.stage_settings(step).batch_size * world_size
        if images + (upper - step) * batch >= num_images:
            break
        images, step = images + (upper - step) * batch, upper
    batch = curriculum.stage_settings(step).batch_size * world_size
    return step - first_step + -(-(num_images - images) // batch)
