"""BOUNDARY: several processes as one run. mp.spawn or torchrun, rank, world size, device, signals.

A command asks `plan` which processes it needs and hands its work to `launch`. The worker gets a
`Place`; what it then calls here (`average`, `agree_to_stop`, ...) must be called by all
ranks in the same order, and costs nothing where there is only one.

CUDA tensors travel by NCCL and CPU tensors by gloo, both in the one default process group.
"""

import contextlib
import errno
import functools
import os
import socket
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__

from distributed.heartbeat import Heartbeat
from distributed.supervisor import PeerLost as PeerLost  # part of what this module offers
from distributed.supervisor import StopSignal as StopSignal
from distributed.supervisor import supervise
from system import flags, machine
from system.errors import UsageError
from system.flags import resolve_device

Payload = TypeVar("Payload")

LOCALHOST = "127.0.0.1"
DEFAULT_PORT = 12355  # the published --port
MAX_PROCESSES = 256  # on one machine: more is a slip of the finger
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# A rank that waits for its peers this long ends the run, though they live; rank 0 may be rendering
# or measuring.
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
LOOK_INTERVAL = timedelta(seconds=1)  # between looks at the peers' signs of life while waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a process stands: its rank among all, its rank on this machine, and its device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one rank that writes files and the screen."""
        return self.rank == 0


def plan(device: str, num_processes: int | None, environ: Mapping[str, str]) -> tuple[Place, ...]:
    """The places that this process is to fill: its own, or those of the ranks it is to start.

    One per visible CUDA device, or one on the CPU, unless num_processes says otherwise. Under
    torchrun this process joins what the environment says.

    Args:
        device: the text of --device.
        num_processes: the value of --num_processes, None where it was not given.
        environ: the environment, for what torchrun sets in it.

    Raises:
        UsageError: no such device, more processes than devices, or half a torchrun environment.
    """
    if "RANK" in environ and "WORLD_SIZE" in environ:
        return (_joined_place(device, num_processes, environ),)
    first = resolve_device(device)
    count = num_processes or 1
    if count > MAX_PROCESSES:
        raise UsageError(f"--num_processes {count}: at most {MAX_PROCESSES} on one machine")
    if first.type == "cuda" and device in ("auto", "cuda"):
        count = num_processes or torch.cuda.device_count()
        if count > torch.cuda.device_count():
            raise UsageError(
                f"--num_processes {count}: there are only {torch.cuda.device_count()} visible CUDA "
                "devices, one for each process"
            )
        devices = [torch.device("cuda", index) for index in range(count)]
    elif count > 1 and first.type != "cpu":
        raise UsageError(f"--num_processes {count}: --device {device} is a single device")
    else:
        devices = [first] * count
    return tuple(
        Place(device=own, rank=i, world_size=count, local_rank=i, local_world_size=count)
        for i, own in enumerate(devices)
    )


def _joined_place(device: str, num_processes: int | None, environ: Mapping[str, str]) -> Place:
    """The place that torchrun's environment gives this process."""
    missing = [name for name in TORCHRUN_VARIABLES if name not in environ]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set as torchrun does, but {', '.join(missing)} is not; "
            "start with torchrun, or unset them"
        )
    try:
        rank, world_size, local_rank = (int(environ[name]) for name in TORCHRUN_VARIABLES[:3])
        local_world_size = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise UsageError(f"torchrun's environment is damaged: {error}") from error
    if num_processes not in (None, local_world_size):
        raise UsageError(
            f"--num_processes {num_processes}: torchrun has started {local_world_size} here"
        )
    first = resolve_device(device)
    if first.type == "cuda" and device in ("auto", "cuda"):
        first = resolve_device(f"cuda:{local_rank}")
    elif first.type != "cpu" and local_world_size > 1:
        raise UsageError(f"--device {device} is one device for {local_world_size} processes")
    return Place(
        device=first,
        rank=rank,
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=local_world_size,
    )


def launch(
    worker: Callable[[Place, Payload], int],
    payload: Payload,
    places: tuple[Place, ...],
    *,
    port: int = DEFAULT_PORT,
    timeout: timedelta = COLLECTIVE_TIMEOUT,
) -> int:
    """The exit code of worker(place, payload), run at every place.

    One place is run in this process. Several are processes of their own, as `supervise` says, which
    meet at port on this machine; worker must then be a module-level function, payload picklable.

    Args:
        worker: what each rank does; its exit code should be the same on all.
        payload: the second argument of worker.
        places: from `plan`.
        port: where the ranks of this machine meet; 0 takes any free one. torchrun has its own.
        timeout: how long a rank waits for its peers in one collective operation.

    Raises:
        UsageError: port is taken, or a rank raised it.
        KeyboardInterrupt: Ctrl-C, before every rank had its StopSignal or for the second time.
    """
    if len(places) == 1:
        try:
            return _work(worker, payload, places[0], None, timeout)
        except BaseException as error:
            if places[0].world_size == 1:
                raise
            _end_at_once(error, places[0].rank)
    listener = _listen(port)
    port = listener.getsockname()[1]
    # Held by this process, so that the port is ours from the start and no rank's end closes it.
    store = TCPStore(
        LOCALHOST,
        port,
        is_master=True,
        timeout=timeout,
        wait_for_workers=False,
        use_libuv=False,  # PyTorch 2.6's libuv takes no socket that listens already
        master_listen_fd=listener.detach(),
    )
    try:
        work = functools.partial(_work_at_port, worker, payload, places, port, timeout)
        return supervise(work, len(places))
    finally:
        del store


def _end_at_once(error: BaseException, rank: int) -> NoReturn:
    """End this process, which has peers elsewhere, as flags.run would after the same error.

    An orderly end may wait for a peer that is lost; and threads that wait for peers abort it.
    """

    def fail(_: Sequence[str] | None) -> int:
        raise error

    code = 1
    if isinstance(error, PeerLost):
        if str(error):
            print(f"error: rank {rank}: {error}", file=sys.stderr)
    else:
        try:
            code = flags.run(fail)
        except BaseException:
            traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _listen(port: int) -> socket.socket:
    """A socket that listens at port, for this machine only."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as spare:
        spare.bind((LOCALHOST, 0))
        free = spare.getsockname()[1]
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # A port whose last user has just ended is free.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOCALHOST, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        is_taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is taken" if is_taken else f"can't be used ({error})"
        raise UsageError(f"--port {port} {reason}; --port {free} is free") from error
    return listener


def _work_at_port(
    worker: Callable[[Place, Payload], int],
    payload: Payload,
    places: tuple[Place, ...],
    port: int,
    timeout: timedelta,
    rank: int,
) -> int:
    """What a rank that was started here does."""
    # Otherwise gloo looks up this machine's name, which not every machine can resolve.
    loopback = {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex())
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback.pop())
    store = TCPStore(LOCALHOST, port, is_master=False, timeout=timeout, use_libuv=False)
    return _work(worker, payload, places[rank], store, timeout)


def _work(
    worker: Callable[[Place, Payload], int],
    payload: Payload,
    place: Place,
    store: TCPStore | None,
    timeout: timedelta,
) -> int:
    """The exit code of worker among its peers, met in store or, without one, as torchrun says."""
    is_cuda = place.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(place.device)
    if place.local_world_size > 1 and not (store is not None and "OMP_NUM_THREADS" in os.environ):
        # torchrun sets that variable to 1 unasked, so there it is no wish of the user's.
        torch.set_num_threads(max(1, machine.num_cores() // place.local_world_size))
    if place.world_size == 1:
        return worker(place, payload)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.world_size,
        timeout=timeout,
        device_id=place.device if is_cuda else None,
    )
    global _heartbeat
    address = (LOCALHOST, store.port) if store is not None else _torchrun_address()
    _heartbeat = Heartbeat(
        TCPStore(*address, is_master=False, timeout=timeout), place.rank, place.world_size
    )
    code = worker(place, payload)
    # Not after a failure: with a peer gone, taking the group down may wait for it.
    _heartbeat.stop()
    _heartbeat = None
    dist.destroy_process_group()
    return code


def _torchrun_address() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


# What the ranks do together

_heartbeat: Heartbeat | None = None  # of this process, as is torch's process group


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """Work inside that takes about as long at every step: a rank that hangs in it is lost."""
    if _heartbeat is None:
        yield
    else:
        with _heartbeat.watched():
            yield


def _finish(work: dist.Work) -> None:
    """Wait for an operation on CPU tensors for as long as all ranks live.

    Raises:
        PeerLost: one has ended, stands still, or cannot be reached.
    """
    assert _heartbeat is not None
    with _heartbeat.waiting():
        while True:
            try:
                work.wait(LOOK_INTERVAL)
                return
            except RuntimeError as error:
                if work.is_completed():
                    raise PeerLost("the connection to another process broke") from error
            complaint = _heartbeat.complaint()
            if complaint is not None:
                raise PeerLost(complaint)


def _all_reduce(values: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
    if values.is_cuda:
        dist.all_reduce(values, op=op)  # by NCCL, which does not block this process
    else:
        _finish(dist.all_reduce(values, op=op, async_op=True))


def _broadcast(values: Tensor, source: int = 0) -> None:
    if values.is_cuda:
        dist.broadcast(values, src=source)
    else:
        _finish(dist.broadcast(values, src=source, async_op=True))


def agree_to_stop(is_asked: bool) -> bool:
    """Whether any rank is asked to stop, the same answer on all. Called once a step by all."""
    if not dist.is_initialized():
        return is_asked
    answer = torch.tensor(int(is_asked))  # on the CPU, so no rank waits for its device
    _all_reduce(answer, dist.ReduceOp.MAX)
    return bool(answer.item())


def wait_for_all() -> None:
    """Return when every rank has come here."""
    agree_to_stop(False)


def average(tensors: Iterable[Tensor]) -> None:
    """Replace every tensor, such as a gradient, by its mean over the ranks, in place.

    One message per device and dtype. All ranks give tensors of the same shapes in the same order.
    With loss scaling, average gradients before infinities are looked for: all ranks find the same.
    """
    if dist.is_initialized():
        _change_together(list(tensors), _replace_by_mean)


def _replace_by_mean(values: Tensor) -> None:
    _all_reduce(values)
    values.div_(dist.get_world_size())


def add_up(values: Tensor) -> None:
    """Replace values by their sum over the ranks, in place; exact where all but one are 0."""
    if dist.is_initialized():
        _all_reduce(values)


def broadcast_state(tensors: Iterable[Tensor]) -> None:
    """Replace tensors (parameters, buffers, averages) on every rank by those of rank 0."""
    if dist.is_initialized():
        _change_together(list(tensors), _broadcast)


def values_of_all(value: int) -> list[int]:
    """The value of each rank, the same list on all."""
    if not dist.is_initialized():
        return [value]
    values = torch.zeros(dist.get_world_size(), dtype=torch.int64)
    values[dist.get_rank()] = value
    add_up(values)
    return values.tolist()


def broadcast_bytes(data: bytes, source: int) -> bytes:
    """The data of rank source, on all ranks; what the others give is not looked at."""
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
    """The mean over the ranks of each scalar. All ranks give the same names, on one device.

    Does not wait for the device.
    """
    if not dist.is_initialized() or not terms:
        return dict(terms)
    names = sorted(terms)
    values = torch.stack([terms[name].detach().float() for name in names])
    _replace_by_mean(values)
    return dict(zip(names, values, strict=True))
