"""What reaches the terminal, in which encoding, and what happens on Ctrl-C."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import expunge
from expunge import cli
from expunge._core.distributed import this_process
from expunge.cli import results, terminal
from expunge.errors import ConfigError, DataError, did_you_mean, printable
from expunge.reporting.html import installed_version

ESCAPE = "\x1b[31m"


class Stream(io.BytesIO):
    """Bytes that can be read after the stream is closed, and a disk that may be full."""

    def __init__(self, *, is_full: bool = False) -> None:
        super().__init__()
        self.is_full = is_full

    def write(self, data) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


def run(monkeypatch, *arguments: str, encoding: str = "utf-8", is_full: bool = False):
    """The exit code of the command, stdout and stderr."""
    out, err = Stream(is_full=is_full), Stream()
    monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    sys.stderr.flush()
    out.is_full = False
    return stop.value.code or 0, out.getvalue().decode(encoding), err.getvalue().decode(encoding)


@pytest.mark.parametrize("bad", [ESCAPE, "\x9b2J", "\x0b", "\x07", "\u202e", "\ud800", "\x7f"])
def test_what_controls_a_terminal_is_escaped(bad):
    assert printable(f"a{bad}é\n\t") == f"a{bad.encode('unicode_escape').decode()}é\n\t"
    assert bad not in str(DataError(f"a{bad}", where=bad, fix=bad))


def test_paths_and_names_cannot_control_the_terminal(monkeypatch, tmp_path):
    spec = tmp_path / f"{ESCAPE}.toml"
    spec.write_text(f'"{chr(92)}u001b[2J" = 1\n[data.train]\npath = "x"\n')
    code, out, err = run(monkeypatch, "check", str(spec))
    assert code == 1
    assert "\\x1b[31m" in out
    assert "\\x1b[2J" in out
    assert "\x1b" not in out + err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_without_some_characters_is_no_error(monkeypatch, tmp_path, encoding):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, "check", "kätzchen.toml", encoding=encoding)
    shown = "✗ kätzchen.toml: there is no such spec file"
    assert code == 1
    assert out.startswith(shown.encode(encoding, "backslashreplace").decode(encoding))


def test_the_version_is_printed(monkeypatch):
    code, out, _ = run(monkeypatch, "--version")
    assert (code, out) == (0, f"expunge {installed_version()}\n")


def test_a_full_device_behind_stdout_is_our_error(monkeypatch, tmp_path):
    code, _, err = run(monkeypatch, "check", str(tmp_path / "a.toml"), is_full=True)
    assert code == 1
    assert "error: stdout cannot be written: No space left on device" in err
    assert "Traceback" not in err


def test_a_rank_that_is_no_number_is_our_error(monkeypatch, tmp_path):
    monkeypatch.setenv("RANK", "x")
    code, _, err = run(monkeypatch, "check", str(tmp_path / "a.toml"))
    assert code == 1
    assert "RANK is 'x', expected the number of the process" in err
    monkeypatch.setenv("LOCAL_RANK", "0")
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        with monkeypatch.context() as changed:
            changed.setenv("RANK", "0")
            changed.setenv(name, "y")
            with pytest.raises(ConfigError, match=f"{name} is 'y'"):
                this_process()


def test_a_working_directory_that_was_deleted_is_our_error(monkeypatch, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, _, err = run(monkeypatch, "check", "../a.toml")
    assert (code, "working directory does not exist" in err) == (1, True)


def test_a_launcher_that_starts_one_process_instead_of_two_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    code, _, err = run(monkeypatch, "check", str(tmp_path / "a.toml"))
    assert code == 1
    assert "starts one process, whatever --num_processes says" in err
    assert "torchrun --nproc-per-node 2" in err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "starts one process" not in run(monkeypatch, "check", str(tmp_path / "a.toml"))[2]


def test_ctrl_c_says_where_it_stopped_and_how_to_go_on(monkeypatch):
    def interrupted(kind: str) -> None:
        with terminal.progress() as show:
            show("1-score", 3, 10)
            raise KeyboardInterrupt

    monkeypatch.setattr(results, "_registry", interrupted)
    code, _, err = run(monkeypatch, "list", "recipes")
    assert code == 130
    assert "error: stopped by Ctrl-C during 1-score (3 of 10)\n  fix: run the same command" in err
    monkeypatch.setattr(results, "_registry", lambda kind: (_ for _ in ()).throw(KeyboardInterrupt))
    assert run(monkeypatch, "list", "recipes")[0] == 130


def test_ctrl_c_during_imports_is_no_traceback(tmp_path):
    """A package that the command imports takes its time, and is interrupted."""
    (tmp_path / "torch.py").write_text(
        "import time\nprint('importing', flush=True)\ntime.sleep(60)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(expunge.__file__).parents[1]}",
    }
    command = [sys.executable, "-m", "expunge", "check", "a.toml"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        # A shell ignores the signal in what it runs in the background, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "stopped by Ctrl-C" in err
    assert "Traceback" not in err


def test_a_path_in_brackets_is_no_markup(monkeypatch, tmp_path):
    metric = {"value": 0.5, "low": 0.4, "high": 0.6}
    sides = {side: {"accuracy": metric} for side in ("before", "after")}
    pruning = {"parameters_before": 2, "parameters_after": 1}
    found = {"recipe": "default", "seed": 0, **sides, "gain": metric, "pruning": pruning}
    monkeypatch.setattr(results, "read_result", lambda run: found)
    code, out, err = run(monkeypatch, "compare", "runs/[/red]", f"runs/{ESCAPE}")
    assert (code, err) == (0, "")
    assert "runs/[/red]" in out
    assert "\x1b" not in out


def test_a_thousand_names_are_not_listed():
    known = [f"class-{i}" for i in range(1000)]
    assert did_you_mean("zebra", known).endswith("… (1000 in all)")
    assert len(did_you_mean("zebra", known)) < 400


def test_a_stream_that_the_shell_closed_is_written_to_nowhere(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    terminal.tolerate_encodings()
    terminal.echo("nobody sees it")
    sys.stdout.close()
