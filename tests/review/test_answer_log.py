"""The file of answers: appended to, read back, and never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from expunge.errors import DataError, RunError
from expunge.review import Answer, Draw
from expunge.review.answer_log import AnswerLog, from_row
from expunge.review.cards import Cards
from expunge.review.exchange import export_questions, import_answers
from oracles_review import open_session, planted, write_run

CLASSES = ("cat", "dog <b>", "deer")


def test_answers_come_back_as_they_were(tmp_path):
    log = AnswerLog(tmp_path, CLASSES)
    answers = [
        Answer(1, "wrong", 1, "Zoë", "2026-01-01T00:00:00+00:00", draw=Draw(0, 1, 20, 2, 0.15)),
        Answer("a/b", "cannot-tell", repeat=True),
        Answer(1, "undo", reviewer="Zoë"),
    ]
    log.append(answers[:1])
    log.append(answers[1:])
    assert log.read() == answers
    line = json.loads((tmp_path / "reviews.jsonl").read_text().splitlines()[0])
    assert (line["label"], line["stratum_size"]) == ("dog <b>", 20)


def test_a_line_that_was_cut_off_is_ignored_and_replaced(tmp_path):
    log = AnswerLog(tmp_path, CLASSES)
    log.append([Answer(1, "right", 0), Answer(2, "right", 0)])
    whole = log.file.read_bytes()
    log.file.write_bytes(whole + whole[: len(whole) // 3])
    assert [a.id for a in log.read()] == [1, 2]
    log.append([Answer(3, "right", 0)])
    assert [a.id for a in log.read()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "expected an object, got list"),
        ('{"verdict": "right"}', "missing: id"),
        ('{"id": 1, "verdict": "yes"}', "unknown verdict 'yes'"),
        ('{"id": 1, "verdict": "wrong", "label": "dogg"}', "there is no class 'dogg'"),
        ('{"id": [1], "verdict": "right"}', "expected an id of text or an integer"),
        ("{'id': 1}", "is not JSON"),
        (
            '{"id": 1, "verdict": "right", "batch": 0, "stratum": 0, "stratum_size": 5, '
            '"order": 7, "probability": 2}',
            "out of range",
        ),
    ],
)
def test_a_line_that_is_no_answer_is_named(tmp_path, line, message):
    (tmp_path / "reviews.jsonl").write_text(f'{{"id": 1, "verdict": "right"}}\n{line}\n')
    with pytest.raises(RunError, match="line 2") as error:
        AnswerLog(tmp_path, CLASSES).read()
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("classes", "written", "label"),
    [
        (("1.0", "2.0"), "2", 1),
        (("1", "2"), "2.0", 1),
        (("False", "True"), "TRUE", 1),
        (("big  cat", "dog"), "big cat ", 0),
        (("Cat", "cat"), "cat", 1),
    ],
)
def test_a_class_is_known_as_a_spreadsheet_writes_it(classes, written, label):
    indices = {name: k for k, name in enumerate(classes)}
    row = {"id": "7", "verdict": "Wrong ", "label": written}
    assert from_row(row, indices) == Answer("7", "wrong", label)


def test_a_class_that_may_be_two_is_not_guessed():
    with pytest.raises(DataError, match="there is no class 'CAT': did you mean"):
        from_row({"id": 7, "verdict": "wrong", "label": "CAT"}, {"Cat": 0, "cat": 1})


def test_a_killed_writer_loses_no_answer_that_it_acknowledged(tmp_path):
    code = (
        "import sys\n"
        "from expunge.review import Answer\n"
        "from expunge.review.answer_log import AnswerLog\n"
        "log = AnswerLog(sys.argv[1], ('a', 'b'))\n"
        "for k in range(10**6):\n"
        "    log.append([Answer(k, 'right', 0)])\n"
        "    print(k, flush=True)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(20)][-1]
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        acknowledged = max([acknowledged, *(int(x) for x in process.stdout.read().split())])
    found = [a.id for a in AnswerLog(tmp_path, ("a", "b")).read()]
    assert found[: acknowledged + 1] == list(range(acknowledged + 1))


def test_a_tool_of_ones_own_fills_in_the_csv(tmp_path):
    partition, true = planted(n=300)
    session = open_session(write_run(tmp_path / "run", partition), budget=30)
    cards = Cards(partition, session.run.scores, session.classes)
    export_questions(session, cards, tmp_path / "q.csv")
    lines = (tmp_path / "q.csv").read_text().splitlines()
    head = lines[0].split(",")
    filled = [lines[0]]
    row_of = {str(i): k for k, i in enumerate(partition.ids)}
    for line in lines[1:]:
        cells = dict(zip(head, line.split(","), strict=True))
        k = row_of[cells["id"]]
        is_right = true[k] == partition.labels[k]
        cells |= {"verdict": "right" if is_right else "wrong", "reviewer": "tool"}
        cells["label"] = "" if is_right else "abcd"[true[k]]
        filled.append(",".join(cells[name] for name in head))
    (tmp_path / "q.csv").write_text("\n".join(filled) + "\n")
    assert import_answers(session, tmp_path / "q.csv") == len(lines) - 1
    assert import_answers(session, tmp_path / "q.csv") == 0
    assert session.progress().review.n_answered >= 10
    assert session.progress().review.is_design_based
    session.close()


def test_answers_of_a_file_are_added_whole_or_not_at_all(tmp_path):
    partition, _ = planted(n=50)
    session = open_session(write_run(tmp_path / "run", partition), budget=10)
    file = tmp_path / "a.csv"
    file.write_text("id,verdict,label\n0,right,\n1,right,\n")
    with pytest.raises(DataError, match="no sample has the id 1"):
        import_answers(session, file)
    file.write_text("id,verdict,label\n0,wrong,zebra\n3,wrongg,a\n")
    with pytest.raises(DataError, match="2 problems"):
        import_answers(session, file)
    assert session.log.read() == []
    session.close()
