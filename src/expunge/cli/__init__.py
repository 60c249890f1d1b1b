"""The command line: results on stdout, progress on stderr, one line for an error.

Exit codes: 0 done, 1 an error that the user can fix, 2 wrong usage, 3 red flags with --strict.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from importlib.metadata import entry_points

import typer

from expunge.cli import clean, detect, repair, results, review  # noqa: F401  (they add commands)
from expunge.cli.terminal import app, err_console
from expunge.errors import ExpungeError

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
    load_group(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))
    try:
        # Of several processes, which all have the result, the first one prints it.
        with redirect_stdout(io.StringIO()) if int(os.environ.get("RANK", 0)) else nullcontext():
            app()
    except ExpungeError as error:
        err_console.print(
            f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True
        )
        sys.exit(1)
    finally:
        if "torch" in sys.modules:
            from expunge._core.distributed import shutdown

            shutdown()


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
