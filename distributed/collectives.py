"""Collective operations between the ranks of a run, and their timeouts.

Every function here must be called by all ranks in the same order. With one process none of them
does anything. CUDA tensors use NCCL and CPU tensors gloo.

The operations use two kinds of process groups. The default group has a long timeout: in it ranks
wait for rank 0 while it saves, renders previews or measures FID, and for each other while kernels
compile. The group of the training steps has a short timeout, which detects a rank that is stopped
or whose machine is gone. gloo also detects at once that a rank has died. NCCL may not notice that
of a rank on the same machine: there the launcher must end the others, as train.py and torchrun do.

gloo reports a lost rank as an error in the main thread, which becomes PeerLost. NCCL raises a
DistError in the main thread if that is not blocked in a CUDA call; after the timeout its watchdog
thread ends the process (SIGABRT).
"""

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(hours=6)  # longer than anything that rank 0 does while the others wait
STEP_SECONDS = 30.0  # the timeout within training steps is at least this ...
STEP_FACTOR = 10.0  # ... and at least so many times as long as a step

_group: dist.ProcessGroup | None = None  # carries the operations; None is the default group


class PeerLost(Exception):
    """Another rank has died or does not answer. The text is empty if it was already printed."""


LOST = (PeerLost, dist.DistError)  # what the operations raise where a rank is lost


class StepTimeouts:
    """Chooses the process group of each training step.

    The first steps of a stage run in the default group. The last of them is timed, and later steps
    run in a group whose timeout fits that time.
    """

    def __init__(self) -> None:
        self._stage: Hashable = None
        self._num_patient = 0  # remaining steps in the default group
        self._group: dist.ProcessGroup | None = None
        self._seconds = 0.0  # the timeout of that group

    @contextlib.contextmanager
    def step(self, stage: Hashable, num_patient: int) -> Iterator[None]:
        """Choose the group for the operations of the training step in the with block.

        stage: equal for all steps of a stage. num_patient: steps, at the start of a stage, in which
        kernels may be compiled and tuned; at least 2, because the last one is timed.
        """
        if not dist.is_initialized():
            yield
            return
        if stage != self._stage:
            self._stage, self._num_patient = stage, num_patient
        if not self._num_patient:
            with _carried_by(self._group):
                yield
            return
        _wait_for_device()
        start = time.monotonic()
        yield
        _wait_for_device()
        self._num_patient -= 1
        if self._num_patient == 0:
            self._fit(time.monotonic() - start)

    def wait_for_rank_0(self) -> None:
        """Wait patiently until rank 0 has saved or measured; rank 0 itself waits as in a step."""
        if not dist.is_initialized():
            return
        is_brief = dist.get_rank() == 0 and self._num_patient == 0
        token = torch.zeros(1)
        with _peer_errors(token):
            work = dist.broadcast(token, 0, async_op=True)
            work.wait(timedelta(seconds=self._seconds) if is_brief else PATIENCE)

    def _fit(self, seconds: float) -> None:
        """Make a group with a longer timeout if a step of this many seconds needs one."""
        slowest = torch.tensor(seconds)
        _all_reduce(slowest, dist.ReduceOp.MAX)
        timeout = max(STEP_SECONDS, STEP_FACTOR * slowest.item())
        if timeout > self._seconds:
            self._seconds = timeout
            with _peer_errors(slowest):
                self._group = dist.new_group(timeout=timedelta(seconds=timeout))


@contextlib.contextmanager
def _carried_by(group: dist.ProcessGroup | None) -> Iterator[None]:
    global _group
    _group = group
    try:
        yield
    finally:
        _group = None


def _wait_for_device() -> None:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextlib.contextmanager
def _peer_errors(values: Tensor) -> Iterator[None]:
    """Raise gloo's errors as PeerLost; pass on those of NCCL and CUDA, which say more."""
    try:
        yield
    except RuntimeError as error:
        if values.is_cuda or isinstance(error, dist.DistError):
            raise
        peer = f"rank {1 - dist.get_rank()}" if dist.get_world_size() == 2 else "another rank"
        if "timed out" in str(error).lower():
            raise PeerLost(f"{peer} did not answer in time") from error
        raise PeerLost(f"the connection to {peer} broke") from error


def _all_reduce(values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    with _peer_errors(values):
        dist.all_reduce(values, op=op, group=_group)


def _broadcast(values: Tensor, source: int = 0) -> None:
    with _peer_errors(values):
        dist.broadcast(values, src=source, group=_group)


def agree(*answers: bool) -> list[bool]:
    """Return for each answer whether any rank gave True, the same list on all ranks."""
    if not dist.is_initialized():
        return list(answers)
    values = torch.tensor(answers, dtype=torch.int32)  # on the CPU: no rank waits for its device
    _all_reduce(values, dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def agree_to_stop(is_asked: bool) -> bool:
    """Return on all ranks whether any of them was asked to stop."""
    return agree(is_asked)[0]


def wait_for_all() -> None:
    """Wait until every rank has called this function."""
    agree_to_stop(False)


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor, such as a gradient, by its mean over the ranks, in place.

    One message per device and dtype. All ranks pass tensors of the same shapes in the same order.
    With loss scaling, average gradients before checking for infinities, so that all ranks agree.
    """
    if dist.is_initialized():
        _change_together(list(tensors), _replace_by_mean)


def _replace_by_mean(values: Tensor) -> None:
    _all_reduce(values)
    values.div_(dist.get_world_size())


def add_up(values: Tensor) -> None:
    """Replace values by their sum over the ranks, in place; exact if only one rank's is not 0."""
    if dist.is_initialized():
        _all_reduce(values)


def broadcast_state(tensors: Iterable[Tensor]) -> None:
    """Replace tensors (parameters, buffers, averages) on every rank by those of rank 0."""
    if dist.is_initialized():
        _change_together(list(tensors), _broadcast)


def values_of_all(value: int) -> list[int]:
    """Return a list of the values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    values = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    values[dist.get_rank()] = value
    add_up(values)
    return values.tolist()


def broadcast_bytes(data: bytes, source: int) -> bytes:
    """Return the data of rank source on all ranks; the data that other ranks pass is ignored."""
    if not dist.is_initialized():
        return data
    length = values_of_all(len(data))[source]
    content = torch.zeros(length, dtype=torch.uint8)
    if dist.get_rank() == source:
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    _broadcast(content, source)
    return content.numpy().tobytes()


@torch.no_grad()
def _change_together(tensors: list[Tensor], change: Callable[[Tensor], object]) -> None:
    """Apply change, in place, to tensors joined into one flat tensor per device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    for group in groups.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        change(flat)
        pieces = torch.split(flat, [tensor.numel() for tensor in group])
        for tensor, piece in zip(group, pieces, strict=True):
            tensor.copy_(piece.view_as(tensor))


def mean_over_ranks(terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return each scalar's mean over the ranks, which have the same names; waits for no device."""
    if not dist.is_initialized() or not terms:
        return dict(terms)
    names = sorted(terms)
    values = torch.stack([terms[name].detach().float() for name in names])
    _replace_by_mean(values)
    return dict(zip(names, values, strict=True))
