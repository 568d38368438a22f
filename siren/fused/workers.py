"""Work spread over threads of our own, each of which computes on one core.

PyTorch's own threads meet after every operation, and wait for the slowest; here they meet once. The
split depends on the number of threads alone, so that the same machine adds up in the same order.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Result = TypeVar("Result")

MAX_WORKERS = 16  # more would wait for Python's lock


@functools.cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))


def spread(work: Callable[[range], Result], num_tasks: int) -> list[Result]:
    """Results of work on consecutive shares of the tasks 0..num_tasks-1, in their order.

    One share per thread that PyTorch may use here (torch.get_num_threads), at most MAX_WORKERS.
    Gradients and autocast are off inside.
    """
    count = max(1, min(torch.get_num_threads(), MAX_WORKERS, num_tasks))
    bounds = [num_tasks * i // count for i in range(count + 1)]
    shares = [range(*pair) for pair in zip(bounds[:-1], bounds[1:], strict=True)]

    def plainly(share: range) -> Result:  # these states are a thread's own
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return work(share)

    if count == 1:
        return [plainly(shares[0])]
    return list(_pool(count).map(plainly, shares))
