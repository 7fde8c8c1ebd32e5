"""What a search begins with, whoever drives it: its data are kept, and its machine is known."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from mixtune.cost.machine import Machine, device_here, look_at_machine
from mixtune.datasets import to_parts, write_parts
from mixtune.errors import DataError
from mixtune.run.directory import RunDirectory
from mixtune.space.foreign import to_train
from mixtune.space.space import SearchSpace, space_on_arrays
from mixtune.stages.opened import refuse_other_device
from mixtune.tuning.prepare import AnySpace
from mixtune.tuning.search import RunningSearch


@contextmanager
def kept_data(
    space: AnySpace, data: Any, run: RunDirectory, overrides: Mapping[str, Any] | None
) -> Iterator[tuple[AnySpace, Mapping[str, Any] | None]]:
    """Keep ``data`` in the run's directory, and give the space that trains on it; it goes again if no search begins."""
    if data is None:
        yield space, overrides
        return
    resolved = space_on_arrays(space, os.path.abspath(run.data), overrides or {})  # before anything is written
    try:
        write_parts(to_parts(data), run.data)
        yield resolved, None
    finally:
        if not run.holds_run:
            shutil.rmtree(run.data, ignore_errors=True)
            with suppress(OSError):  # others' files, or a lock
                run.path.rmdir()


def machine_to_continue_on(space: SearchSpace, machine: Machine, measure: Callable[..., Any]) -> Machine:
    """Return the machine that a run began on, or this one with the threads and the precision of that.

    measure: calls a function with its arguments and ``on_gpu``, where trials train. Raises RequestError where seconds
    of this machine would stand alongside those of another one.
    """
    here = measure(device_here, machine.threads)
    if here == machine.device:
        return machine
    refuse_other_device(machine.device, here, space)
    found: Machine = measure(look_at_machine, space, machine.threads)
    return replace(found, precision=machine.precision)


@contextmanager
def saying_that_the_ledger_is_full(search: RunningSearch, run: RunDirectory) -> Iterator[None]:
    """Raise DataError where the ledger could not be written, whatever Ray made of it."""
    try:
        yield
    except Exception as error:
        if search.error is None:
            raise
        problem = getattr(search.error, "strerror", None) or search.error
        search.error = None  # there may be room again
        raise DataError(
            f"{run.ledger_file} cannot be written ({problem}): what it holds is kept; make room, then "
            f"mixtune resume {quoted(run)}"
        ) from error


def quoted(run: RunDirectory) -> str:
    """Return a run's folder as a shell reads it, for a command that trains."""
    return to_train(run.path, run.space) if run.holds_run else shlex.quote(str(run.path))
