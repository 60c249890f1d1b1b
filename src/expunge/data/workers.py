"""Worker processes that decode inputs, in the requested order and with the result of one process.

They are loky's, which joblib brings: started without a copy of this process, so that threads and
GPUs do not matter, and without a guard in the caller's script.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

from expunge._core.threads import processes_on_this_machine
from expunge.errors import DataError, check_range

T = TypeVar("T")
# By default no more are started in each process of a run.
MAX_WORKERS = 16
# By default none are started for inputs of fewer bytes in all.
MIN_BYTES = 1 << 30
_IDLE_SECONDS = 300
_ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

# The function of a worker process; empty in all others.
_FUNCTION: list[Callable[[Any], Any]] = []


def choose_workers(workers: int | None, n_bytes: int) -> int:
    """Return how many worker processes decode inputs of this size.

    Parameters
    ----------
    workers
        The caller's choice; None: one a core, 0 for small inputs or a single core. The
        processes of a run on one machine share its cores.
    n_bytes
        The bytes of all inputs, decoded.

    Examples
    --------
    >>> choose_workers(3, 0), choose_workers(None, 1000)
    (3, 0)
    """
    if workers is not None:
        check_range(DataError, {"workers": (workers, "[0, inf)")}, where="data")
        return workers
    if n_bytes < MIN_BYTES:
        return 0
    from joblib import cpu_count

    cores = int(cpu_count()) // processes_on_this_machine()
    return min(cores, MAX_WORKERS) if cores > 1 else 0


class Workers:
    """Worker processes of one function. They start at the first call and end when idle.

    Parameters
    ----------
    function
        Called in the workers, with one item a call. It is sent to each of them once.
    n
        The number of processes, 1 or more.
    """

    def __init__(self, function: Callable[[Any], Any], n: int) -> None:
        self.n, self._function = n, function
        self._executor: Any = None

    def submit(self, items: Sequence[Any]) -> list[Any]:
        """Begin with parts of the items, one for each worker; give what comes to `results`."""
        size = max(1, -(-len(items) // self.n))
        return [self._submit(items[i : i + size]) for i in range(0, len(items), size)]

    def results(self, begun: Sequence[Any]) -> list[Any]:
        """Wait for the results, in the order of the items.

        Raises
        ------
        DataError
            If a worker died, or the function or an item cannot be sent to another process.
            Errors of the function pass through.
        """
        return [result for part in begun for result in self._wait(part)]

    def map(self, items: Iterable[Any]) -> Iterator[Any]:
        """The results of single items, in their order; a few are computed ahead."""
        waiting: list[Any] = []
        for item in items:
            waiting.append(self._submit([item]))
            if len(waiting) > 2 * self.n:
                yield from self._wait(waiting.pop(0))
        for part in waiting:
            yield from self._wait(part)

    def _submit(self, items: Sequence[Any]) -> Any:
        from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

        if self._executor is None:
            self._executor = ProcessPoolExecutor(
                max_workers=self.n,
                timeout=_IDLE_SECONDS,
                initializer=_start,
                initargs=(self._function,),
                env=_ENVIRONMENT,
            )
        try:
            return self._executor.submit(_call, items)
        except BrokenProcessPool as error:
            raise self._died(error) from error

    def _wait(self, part: Any) -> list[Any]:
        from joblib.externals.loky import BrokenProcessPool

        try:
            found: list[Any] = part.result()
            return found
        except BrokenProcessPool as error:
            raise self._died(error) from error
        except (TypeError, AttributeError, ImportError, _pickling_error()) as error:
            raise DataError(
                f"cannot be read in worker processes: {type(error).__name__}: {error}",
                where="workers",
                fix="set workers = 0; or let the data set open its files when it reads an item",
            ) from error

    def _died(self, error: BaseException) -> DataError:
        self._executor = None
        reason = " ".join(str(error).split()).partition(". ")[0]
        return DataError(
            f"a worker process that decodes inputs ended: {reason[:200]}",
            where="workers",
            fix="set fewer workers if the memory is short; set workers = 0 if another process "
            "cannot import the module of the data set",
        )


def _pickling_error() -> type[Exception]:
    from pickle import PicklingError

    return PicklingError


def _start(function: Callable[[Any], Any]) -> None:
    """Begin a worker: Ctrl-C is for the process that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _FUNCTION[:] = [function]


def _call(items: Sequence[Any]) -> list[Any]:
    return [_FUNCTION[0](item) for item in items]
