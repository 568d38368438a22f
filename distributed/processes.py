"""Plan, start and end the processes (ranks) of a run and choose their devices.

A command gets the places of its processes from `plan` and passes its work to `launch`. The work
receives a `Place` and communicates with other ranks through distributed/collectives.py.
"""

import errno
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe, parent_process
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its __all__
from torch.multiprocessing import (  # type: ignore[attr-defined]  # not in its __all__
    start_processes,
)

from distributed.collectives import PATIENCE, PeerLost
from distributed.supervision import Outcome, StopSignal, ignored_interrupts, supervise
from system import flags, machine
from system.errors import UsageError
from system.flags import DISK_EXIT_CODE, INTERRUPT_EXIT_CODE, USAGE_EXIT_CODE, resolve_device
from system.screen import safe_streams

Payload = TypeVar("Payload")
Worker = Callable[["Place", Payload], int]

LOCALHOST = "127.0.0.1"
ANY_PORT = 0
HAS_LIBUV = sys.platform != "win32"  # some builds for Windows are without this library
ANSWER_SECONDS = 300.0  # between all GPUs, at the start
MAX_PROCESSES = 256  # on one machine; more is a typing error
TORCHRUN_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """The rank of a process among all, its rank on this machine, and its device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Return whether this is the one rank that writes files and prints."""
        return self.rank == 0


def plan(device: str, num_processes: int | None, environ: Mapping[str, str]) -> tuple[Place, ...]:
    """Return the places of the ranks to start here, or this process's own place under torchrun.

    One per visible CUDA device, or one on the CPU, unless --num_processes (None where not given)
    says otherwise. device is the text of --device; environ has the variables that torchrun sets.
    Raises UsageError for no such device, more processes than devices, or half of these variables.
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
        devices = [resolve_device(f"cuda:{index}") for index in range(count)]
    elif count > 1 and first.type != "cpu":
        raise UsageError(f"--num_processes {count}: --device {device} is a single device")
    else:
        devices = [first] * count
    return tuple(
        Place(device=own, rank=i, world_size=count, local_rank=i, local_world_size=count)
        for i, own in enumerate(devices)
    )


def _joined_place(device: str, num_processes: int | None, environ: Mapping[str, str]) -> Place:
    """Return the place that torchrun's environment gives this process.

    A process that sees one CUDA device takes it, whatever its local rank, as under SLURM.
    """
    missing = [name for name in TORCHRUN_VARIABLES if name not in environ]
    if missing:
        raise UsageError(
            f"RANK and WORLD_SIZE are set as torchrun does, but {', '.join(missing)} is not; "
            "start with torchrun, or unset them"
        )
    try:
        ranks = {name.lower(): int(environ[name]) for name in TORCHRUN_VARIABLES[:3]}
        local_world_size = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    except ValueError as error:
        raise UsageError(f"torchrun's environment is damaged: {error}") from error
    if num_processes not in (None, local_world_size):
        raise UsageError(
            f"--num_processes {num_processes}: torchrun has started {local_world_size} here"
        )
    own = resolve_device(device)
    if own.type == "cuda" and device in ("auto", "cuda"):
        index = ranks["local_rank"] if torch.cuda.device_count() > 1 else 0
        own = resolve_device(f"cuda:{index}")
    elif own.type != "cpu" and local_world_size > 1:
        raise UsageError(f"--device {device} is one device for {local_world_size} processes")
    return Place(device=own, local_world_size=local_world_size, **ranks)


def launch(
    worker: Worker[Payload], payload: Payload, places: tuple[Place, ...], *, port: int = ANY_PORT
) -> int:
    """Run worker(place, payload) at every place and return its exit code.

    A single place runs in this process. Several run in processes of their own, which meet at port
    on this machine (0 takes any free one; torchrun has its own); worker must then be a module-level
    function, payload picklable.

    If a rank fails, the others are ended and its failure is printed: a traceback (one line if a
    disk failed) with exit code 1, or the signal n that ended it with exit code 128 + n. Otherwise
    the first code other than 0 that a rank returns is the exit code. The first of the STOP_SIGNALS
    is passed on to the ranks as SIGTERM, for their StopSignal.

    Raises:
        UsageError: port is taken, or a rank raised it.
        KeyboardInterrupt: Ctrl-C before every rank had its StopSignal, or a second Ctrl-C.
    """
    if len(places) > 1:
        return _launch_ranks(worker, payload, places, port)
    if places[0].world_size == 1:
        return _work(worker, payload, places[0], None)
    outcome = _outcome(worker, payload, places[0], None)
    if outcome.kind != "returned":
        outcome.tell()
        _end_at_once(outcome.code)
    return outcome.code


def _launch_ranks(
    worker: Worker[Payload], payload: Payload, places: tuple[Place, ...], port: int
) -> int:
    listener = _listen(port)
    port = listener.getsockname()[1]
    # This process holds the port, so that nobody else takes it and no rank's end closes it.
    store = TCPStore(
        LOCALHOST,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        use_libuv=HAS_LIBUV,
    )
    pipes = [Pipe(duplex=False) for _ in places]
    arguments = (worker, payload, places, port, [sender for _, sender in pipes])
    with StopSignal() as stop:
        with ignored_interrupts():
            context = start_processes(_rank_main, arguments, len(places), join=False)
        try:
            return supervise(context.processes, [receiver for receiver, _ in pipes], stop)
        finally:
            for process in context.processes:
                process.kill()
            del store


def _listen(port: int) -> socket.socket:
    """Return a socket that listens at port, reachable from this machine only."""
    try:
        return socket.create_server((LOCALHOST, port))  # succeeds if the port's last user has ended
    except OSError as error:
        with socket.create_server((LOCALHOST, ANY_PORT)) as spare:
            free = spare.getsockname()[1]
        is_taken = error.errno == errno.EADDRINUSE
        reason = "is taken" if is_taken else f"can't be used ({error})"
        raise UsageError(f"--port {port} {reason}; --port {free} is free") from error


def _work(worker: Worker[Payload], payload: Payload, place: Place, port: int | None) -> int:
    """Join the process group at port, or as torchrun says if port is None; run worker in it."""
    is_cuda = place.device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(place.device)
    if place.local_world_size > 1 and (port is None or "OMP_NUM_THREADS" not in os.environ):
        # torchrun sets OMP_NUM_THREADS to 1 by itself, so there it is not the user's choice.
        torch.set_num_threads(max(1, machine.num_cores() // place.local_world_size))
    if place.world_size == 1:
        return worker(place, payload)
    # After a timeout NCCL's watchdog sleeps four times as long, by default a minute, before it ends
    # the process. Ten seconds let the main thread save, if a gloo error told it of the lost rank.
    os.environ.setdefault("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", "2500")
    has_nccl = is_cuda and dist.is_nccl_available()  # not on Windows
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if has_nccl else "gloo",
        store=None
        if port is None
        else TCPStore(LOCALHOST, port, is_master=False, use_libuv=HAS_LIBUV),
        rank=place.rank,
        world_size=place.world_size,
        timeout=PATIENCE,
        device_id=place.device if has_nccl else None,
    )
    if has_nccl:
        _require_answers(place.device)
    code = worker(place, payload)
    # Not after a failure: destroying the group may wait for a rank that is gone.
    dist.destroy_process_group()
    return code


def _require_answers(device: torch.device) -> None:
    """Check that GPUs receive what others send: on some machines nothing ever arrives.

    Raises:
        UsageError: nothing has arrived for ANSWER_SECONDS.
    """
    dist.all_reduce(torch.zeros(1, device=device))
    done = torch.cuda.current_stream(device).record_event()
    deadline = time.monotonic() + ANSWER_SECONDS
    while not done.query():
        if time.monotonic() > deadline:
            raise UsageError(
                f"NCCL has moved no data between the GPUs for {ANSWER_SECONDS:.0f} s. "
                "NCCL_P2P_DISABLE=1 in the environment often helps; NCCL_DEBUG=INFO says more"
            )
        time.sleep(0.01)


def _outcome(worker: Worker[Payload], payload: Payload, place: Place, port: int | None) -> Outcome:
    try:
        return Outcome(kind="returned", code=_work(worker, payload, place, port))
    except UsageError as error:
        text = f"error: {str(error).strip()}".replace("\n", " ")
        return Outcome(kind="usage", code=USAGE_EXIT_CODE, text=f"{text}\n")
    except PeerLost as error:
        text = f"error: rank {place.rank}: {error}\n" if str(error) else ""
        return Outcome(kind="lost", code=1, text=text)
    except KeyboardInterrupt:
        return Outcome(kind="failed", code=INTERRUPT_EXIT_CODE, text="interrupted\n")
    except BaseException as error:
        if isinstance(error, OSError) and flags.is_of_disk(error):
            text = f"error: {flags.disk_complaint(error)}\n"
        else:
            text = f"rank {place.rank} of {place.world_size} failed:\n{traceback.format_exc()}"
        return Outcome(kind="failed", code=DISK_EXIT_CODE, text=text)


def _end_at_once(code: int) -> NoReturn:
    """End this process without the interpreter's cleanup, which may wait for a lost rank."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _rank_main(
    rank: int,
    worker: Worker[Payload],
    payload: Payload,
    places: tuple[Place, ...],
    port: int,
    senders: Sequence[Any],
) -> None:
    """Run a rank in its new process; exit with 0 if its worker returned."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Otherwise gloo looks up this machine's name, which not every machine can resolve.
    loopback = {"lo", "lo0"}.intersection(name for _, name in socket.if_nameindex())
    if loopback:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback.pop())
    with safe_streams():
        outcome = _outcome(worker, payload, places[rank], port)
        senders[rank].send(outcome)
        _end_at_once(0 if outcome.kind == "returned" else outcome.code)


def _end_with_parent() -> None:
    """End this process at once when its parent process has ended for any reason."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
