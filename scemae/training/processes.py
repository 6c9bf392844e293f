"""The processes of one run: their device, what they agree on, and the signals that stop them."""

from __future__ import annotations

import gc
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list, gather_object

from scemae.errors import RunError, ScemaeError

T = TypeVar("T")
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
# `accelerate launch --cpu` sets the variables of several processes, but without mpirun it starts only one.
SINGLE_PROCESS_HINT = (
    "accelerate launch --cpu starts a single process; for N processes use torchrun --nproc_per_node N -m scemae ..."
)


def make_accelerator() -> Accelerator:
    """This process's device and its connection to the others: a CUDA GPU where there is one, unless `--cpu` is set.

    The engine handles precision and compilation itself: accelerate's settings would outlive the run.
    """
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes")
    on_gpu = torch.cuda.is_available() and not use_cpu
    less_copying = DistributedDataParallelKwargs(gradient_as_bucket_view=True)
    found = Accelerator(cpu=not on_gpu, mixed_precision="no", dynamo_backend="no", kwargs_handlers=[less_copying])
    if found.distributed_type not in SUPPORTED:
        raise RunError(f"This is a {found.distributed_type.value} setup; wanted one process, or DDP on CPUs or GPUs.")
    if use_cpu and "MASTER_ADDR" in os.environ and found.num_processes == 1 and "WORLD_SIZE" not in os.environ:
        warnings.warn(SINGLE_PROCESS_HINT, stacklevel=2)
    return found


def run_on_main(action: Callable[[], T]) -> T:
    """Run `action` on the main process only; all processes wait, then return its result or raise its error."""
    outcome: list[Any] = [None, None]
    if PartialState().is_main_process:
        try:
            outcome[0] = action()
        except ScemaeError as error:
            outcome[1] = error
    result, failure = broadcast_object_list(outcome)
    if failure is not None:
        raise failure
    return result


def check_same(value: Any, message: str) -> None:
    """Raise RunError on all processes unless all have the same value."""
    if any(other != value for other in gather_object([value])):
        raise RunError(message)


def leave_processes() -> bool:
    """End the connection to the other processes; returns whether this is the main one.

    DDP and what it wraps hold each other, and the group with them: what still holds it when the interpreter ends may
    abort the process ("terminate called without an active exception").
    """
    gc.collect()
    state = PartialState()
    state.destroy_process_group()
    return bool(state.is_main_process)


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM, so that the run can stop after its step; a second SIGINT stops it at once.

    A second SIGTERM does not: a scheduler and a launcher each send one. Outside the main thread nothing is collected.
    """
    received: list[int] = []
    before: dict[int, Any] = {}
    if threading.current_thread() is not threading.main_thread():  # Python takes signals there only
        yield received
        return

    def note(number: int, _frame: Any) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    try:
        for asked in (signal.SIGINT, signal.SIGTERM):
            before[asked] = signal.signal(asked, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
