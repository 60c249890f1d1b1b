"""The command line: results on stdout, progress on stderr, one line for an error.

Exit codes: 0 done, 1 an error that the user can fix, 2 wrong usage, 3 red flags with --strict,
130 stopped by Ctrl-C.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import nullcontext, redirect_stdout, suppress
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path

import typer

from expunge.cli import clean, detect, init, repair, results, review  # noqa: F401  (commands)
from expunge.cli.terminal import (
    Interrupted,
    app,
    err_console,
    in_options,
    output_errors,
    show,
    tolerate_encodings,
)
from expunge.errors import ConfigError, ExpungeError

INTERRUPTED = 130  # 128 and the number of SIGINT

# The modules of the command groups. They load heavy packages, so only the group called is loaded.
_GROUPS = {"text": "expunge.cli.text", "nmtune": "expunge.cli.nmtune"}


def load_group(command: str) -> None:
    """Load the commands of a group; of all other groups only the help is known.

    Installed packages bring groups by entry points `expunge.commands`.
    """
    if command in _GROUPS:
        import_module(_GROUPS[command])
    for point in entry_points(group="expunge.commands"):
        groups = [group for group in app.registered_groups if group.name == point.name]
        if point.name == command:
            app.registered_groups = [g for g in app.registered_groups if g not in groups]
            app.add_typer(point.load(), name=point.name)
        elif not groups:
            summary = point.dist.metadata["Summary"] if point.dist else ""
            app.add_typer(typer.Typer(help=summary), name=point.name)


def main() -> None:
    """Entry point: our errors become one message on stderr and exit code 1."""
    _keep_freed_memory()
    tolerate_encodings()
    try:
        code = _run()
        _leave_processes()
    except ExpungeError as error:
        code = INTERRUPTED if isinstance(error, Interrupted) else 1
        if _says_errors():
            with suppress(OSError):  # stderr may be full too
                show(f"error: {in_options(str(error))}", err_console, style="red", soft_wrap=True)
        if "LOCAL_RANK" in os.environ:
            # The others wait for this process: it may not wait for them.
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)


def _leave_processes() -> None:
    if "torch" in sys.modules:
        from expunge._core.distributed import shutdown

        shutdown()


def _says_errors() -> bool:
    """Whether this process prints its error: of those of one launcher, the first to fail.

    They share the folder in which torch's launcher looks for reports of errors.
    """
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if not report:
        return True
    try:
        (Path(report).parent.parent / "expunge-error").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return not _process_number()
    return True


def _run() -> int | str | None:
    """Run the command and return its exit code."""
    _check_launcher()
    _check_working_directory()
    load_group(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    # Of several processes, which all have the result, the first one prints it.
    with redirect_stdout(io.StringIO()) if _process_number() else nullcontext():
        try:
            app()
            code: int | str | None = 0
        except SystemExit as stop:
            code = stop.code
        with output_errors():
            _flush()
    return code


def _process_number() -> int:
    """The number of this process among those that a launcher started."""
    rank = os.environ.get("RANK", "0")
    if not (rank.isascii() and rank.isdecimal()):
        raise ConfigError(
            f"the environment variable RANK is '{rank}', expected the number of the process",
            fix="unset RANK, or start the processes with torchrun or accelerate launch",
        )
    return int(rank)


def _check_launcher() -> None:
    """Refuse the launcher that starts one process where the user wants several.

    ``accelerate launch --cpu --num_processes 2`` leaves an address for the processes to meet at,
    and starts one, without a number.
    """
    is_alone = not any(name.endswith(("RANK", "WORLD_SIZE", "PMI_SIZE")) for name in os.environ)
    if is_alone and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ:
        raise ConfigError(
            "accelerate launch --cpu starts one process, whatever --num_processes says",
            fix="start processes on CPUs with torchrun --nproc-per-node 2 -m expunge …, or leave "
            "--num_processes out",
        )


def _check_working_directory() -> None:
    """Refuse a folder that was deleted meanwhile: relative paths lead nowhere."""
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            "the working directory does not exist any more", fix="cd into another folder"
        ) from error


def _flush() -> None:
    """Write what is buffered now: at the exit of Python it would fail with a traceback."""
    try:
        sys.stdout.flush()
    except OSError as error:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise


def _keep_freed_memory() -> None:
    """Let glibc's allocator keep large freed blocks instead of returning them to the system.

    Training on a CPU makes and drops many large tensors, and is 1.4 … 1.9 times slower otherwise.
    Settings that the user made in the environment are kept.
    """
    trim_threshold, mmap_max = -1, -4  # names of the parameters in malloc.h
    if any(name.startswith("MALLOC_") for name in os.environ) or sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
