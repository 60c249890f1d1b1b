"""Progress where there is no terminal."""

from __future__ import annotations

import typer
from typer.testing import CliRunner

from expunge.cli import terminal
from expunge.cli.progress_log import ProgressLog


def lines_of(steps):
    """The lines for (seconds, what, done, total)."""
    lines, now = [], [0.0]
    log = ProgressLog(lines.append, clock=lambda: now[0])
    for seconds, *step in steps:
        now[0] = seconds
        log(*step)
    return lines


def test_a_stage_has_a_line_at_its_end_and_one_every_half_minute():
    assert lines_of([(s, "score", s + 1, 91) for s in range(91)]) == [
        "score: 31 of 91, 30 s, about 1 min 0 s left",
        "score: 61 of 91, 1 min 0 s, about 30 s left",
        "score: 91 of 91, 1 min 30 s",
    ]


def test_short_stages_have_no_line():
    assert lines_of([(0.0, "evaluate", 1, 2), (0.5, "evaluate", 2, 2)]) == []


def test_a_stage_that_begins_again_has_its_own_time():
    steps = [(0, "tune", 1, 2), (5, "tune", 2, 2), (100, "tune", 1, 2), (103, "tune", 2, 2)]
    assert lines_of(steps) == ["tune: 2 of 2, 5 s", "tune: 2 of 2, 3 s"]


def test_without_a_terminal_lines_go_to_stderr(monkeypatch):
    app = typer.Typer()
    monkeypatch.setattr("expunge.cli.progress_log.MIN_SECONDS", 0.0)

    @app.command()
    def work() -> None:
        with terminal.progress() as show:
            show("score", 1, 1)

    result = CliRunner().invoke(app, [])
    assert result.stderr == "score: 1 of 1, 0 s\n"
    assert result.stdout == ""
