"""Counts of updates that were skipped because they were not finite."""

from typing import NamedTuple

import torch
from torch import Tensor

GENERATOR, DISCRIMINATOR = 0, 1  # places in the rows of Health
NAMES = ("generator", "discriminator")


class Health(NamedTuple):
    """Counts of skipped updates, on the device: reading them waits for it.

    An overflow that only lowers the loss scale skips an update too, and is not counted. skipped ()
    counts both networks; in_a_row and longest_row (2,) have a number for each.
    """

    skipped: Tensor
    in_a_row: Tensor
    longest_row: Tensor

    @classmethod
    def fresh(cls, device: torch.device) -> "Health":
        """Return counts of zero."""
        return cls(*(torch.zeros(size, dtype=torch.int64, device=device) for size in ((), 2, 2)))

    def note(self, network: int, is_bad: Tensor) -> None:
        """Count one update of GENERATOR or DISCRIMINATOR."""
        self.skipped.add_(is_bad)
        self.in_a_row[network].add_(1).mul_(is_bad)
        torch.maximum(self.longest_row, self.in_a_row, out=self.longest_row)

    def worst(self) -> tuple[str, int]:
        """Return the network with the most skipped updates in a row, and their number."""
        longest = self.longest_row.tolist()
        network = longest.index(max(longest))
        return NAMES[network], longest[network]


def poison(gradients: list[Tensor], has_finite_loss: Tensor) -> None:
    """Set gradients to NaN, in place, if the loss was not finite although they are.

    The check of the gradients then skips the update, and the host does not wait for the device.

    has_finite_loss () is 1 where the loss was finite on all processes, less where not.
    """
    if gradients:
        ones = torch.ones_like(has_finite_loss)
        torch._foreach_mul_(gradients, torch.where(has_finite_loss < 1, ones * torch.nan, ones))
