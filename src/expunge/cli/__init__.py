"""The command line: results on stdout, progress on stderr, one line for an error.

Exit codes: 0 done, 1 an error that the user can fix, 2 wrong usage, 3 red flags with --strict.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
from contextlib import nullcontext, redirect_stdout
from importlib.metadata import entry_points

# Each adds its commands to the application.
from expunge.cli import nmtune, repair, results, text  # noqa: F401
from expunge.cli.terminal import app, err_console
from expunge.errors import ExpungeError


def add_plugins() -> None:
    """Add the command groups that installed packages bring: entry points `expunge.commands`."""
    known = {group.name for group in app.registered_groups}
    for point in entry_points(group="expunge.commands"):
        if point.name not in known:
            app.add_typer(point.load(), name=point.name)


def main() -> None:
    """Entry point: our errors become one message on stderr and exit code 1."""
    _keep_freed_memory()
    add_plugins()
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
