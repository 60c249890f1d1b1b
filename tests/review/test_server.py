"""The server of a review: who is let in, what is answered, and that nothing is lost."""

from __future__ import annotations

import socket
import time
from dataclasses import replace

import numpy as np
import pytest

import expunge
from expunge.data.texts import TextInputs
from expunge.errors import ConfigError, DataError, RunError
from expunge.review.answer_log import AnswerLog
from expunge.review.cards import Cards
from expunge.review.filters import Filters
from expunge.review.guard import LOOPBACK, bind
from oracles_review import TOKEN, open_session, planted, running, samples_of, write_run

pytest.importorskip("uvicorn", reason="needs the extra 'review'")
PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    partition, true = planted(n=300)
    folder = write_run(tmp_path_factory.mktemp("review") / "run", partition)
    with running(folder, partition, classes=("a", "<b>x</b>", "c", "d")) as client:
        yield client, partition, true


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/", {}),
        ("/wrong/", {}),
        (f"/{TOKEN[:-1]}/api/state", {}),
        (f"/{TOKEN}/api/state", {"Origin": "http://evil.example"}),
        (f"/{TOKEN}/api/state", {"Origin": "null"}),
        (f"/{TOKEN}/api/state", {"Host": "evil.example"}),
        (f"/{TOKEN}/api/state", {"Sec-Fetch-Site": "cross-site"}),
    ],
)
def test_requests_without_the_token_or_of_others_are_refused(shared, path, headers):
    client, _, _ = shared
    response, content = client.raw("GET", path, **headers)
    assert response.status == 403
    assert b"partition" not in content
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]


def test_an_answer_of_another_origin_is_refused_and_not_written(shared):
    client, _, _ = shared
    before = len(client.session.log.read())
    body = {"row": 0, "verdict": "right"}
    for headers in ({"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        response, _ = client.raw("POST", f"/{TOKEN}/api/answer", body, **headers)
        assert response.status == 403
    response, _ = client.raw("POST", f"/{TOKEN}/api/answer", body, **{"Content-Type": "text/plain"})
    assert response.status == 415
    assert len(client.session.log.read()) == before


@pytest.mark.parametrize(
    "path", ["../../etc/passwd", "..%2f..%2fetc%2fpasswd", "media/0/../../x", "media/0/..%2fx.png"]
)
def test_paths_that_lead_out_find_nothing(shared, path):
    client, _, _ = shared
    response, content = client.raw("GET", f"/{TOKEN}/{path}")
    assert response.status in (403, 404)
    assert b"root" not in content


def test_pages_hold_no_foreign_assets_and_no_markup_of_names(shared):
    client, _, _ = shared
    for name in ("", "review.js", "review.css"):
        response, content = client.raw("GET", f"/{TOKEN}/{name}")
        assert response.status == 200
        assert b"//" not in content.replace(b"// ", b"")
        assert b"innerHTML" not in content
    assert client.get("state")["classes"][1] == "<b>x</b>"
    _, page = client.raw("GET", f"/{TOKEN}/")
    assert b"<noscript>" in page


def test_answers_are_on_the_disk_when_they_are_acknowledged(shared):
    client, partition, true = shared
    for _ in range(5):
        question = client.get("next?reviewer=ann")
        row = question["card"]["row"]
        verdict = "right" if true[row] == partition.labels[row] else "wrong"
        saved = client.post(
            "answer",
            {"row": row, "verdict": verdict, "label": int(true[row]), "reviewer": "ann"},
        )
        last = AnswerLog(client.session.run.folder, client.session.classes).read()[-1]
        assert (str(last.id), last.verdict) == (question["card"]["id"], verdict)
        assert last.draw is not None
        assert saved["progress"]["budget"] == 100
    undone = client.post("undo", {"reviewer": "ann"})
    assert undone["card"]["row"] == row
    assert client.get("next?reviewer=ann")["card"]["row"] == row
    client.post("undo", {"reviewer": "nobody"}, 400)


def test_two_reviewers_are_n_shown_different_questions_and_see_disagreements(shared):
    client, partition, _ = shared
    rows = {client.get(f"next?reviewer={name}")["card"]["row"] for name in ("eve", "bob")}
    assert len(rows) == 2
    row, given = 250, int(partition.labels[250])
    client.post("answer", {"row": row, "verdict": "right", "reviewer": "eve"})
    other = {"row": row, "verdict": "wrong", "label": (given + 1) % 4, "reviewer": "bob"}
    client.post("answer", other)
    answers = client.get(f"card/{row}")["card"]["answers"]
    assert [(a["reviewer"], a["verdict"]) for a in answers] == [("eve", "right"), ("bob", "wrong")]
    deadline = time.monotonic() + 60  # a thread estimates
    while client.session.progress().version < client.session.version:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert client.get("list?status=disputed")["tiles"][0]["row"] == row


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"row": 10**9, "verdict": "right"}, "there is no sample"),
        ({"row": "0", "verdict": "right"}, "to be integers"),
        ({"row": True, "verdict": "right"}, "to be integers"),
        ({"row": 0, "verdict": "maybe"}, "unknown verdict"),
        ({"row": 0, "verdict": "wrong"}, "needs the right label"),
        ({"row": 0, "verdict": "wrong", "label": 9}, "there is no class 9"),
        ({"row": 0, "verdict": "right", "reviewer": "x" * 999}, "reviewer's name"),
        ({"row": 0, "verdict": "right", "reviewer": "a\nb"}, "reviewer's name"),
        ([], "expected a JSON object"),
        (b"{", "expected a JSON object"),
        (b"[" * 40_000, "expected a JSON object"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(shared, body, message):
    client, _, _ = shared
    before = len(client.session.log.read())
    assert message in client.post("answer", body, 400)["error"]
    assert len(client.session.log.read()) == before


def test_filters_select_what_they_say(shared):
    client, partition, _ = shared
    split = client.session.progress().review.partition
    found = client.get("list?label=1&low=0.2&high=0.9&limit=200")
    expected = (split.labels == 1) & (split.p_noisy >= 0.2) & (split.p_noisy <= 0.9)
    assert found["total"] == expected.sum()
    assert {t["row"] for t in found["tiles"]} == set(np.flatnonzero(expected))
    assert client.get("list?text=297")["total"] == sum("297" in str(i) for i in partition.ids)
    assert client.get("list?flagged=1")["total"] == split.flagged.sum()
    assert client.get("classes?q=B")[0]["label"] == 1
    assert "not valid" in client.get("list?low=x", 400)["error"]


def test_a_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        with pytest.raises(ConfigError, match=r"port \d+ cannot be used"):
            bind(taken.getsockname()[1])


def test_a_run_that_changed_takes_no_answer(tmp_path):
    partition, _ = planted(n=60)
    folder = write_run(tmp_path / "run", partition)
    session = open_session(folder, budget=10)
    note = folder / "2-partition" / "stage.json"
    note.write_text(note.read_text())
    with pytest.raises(RunError, match="another partition"):
        session.answer(0, "right", None, "a")
    session.close()


def test_a_restarted_review_goes_on_where_it_was(tmp_path):
    partition, _ = planted(n=100)
    folder = write_run(tmp_path / "run", partition)
    session = open_session(folder, budget=20)
    for _ in range(3):
        session.answer(session.next("a").row, "right", None, "a")
    following = session.next("a")
    queue = session.queue
    session.close()
    again = open_session(folder, budget=20)
    assert again.queue == queue
    assert again.next("a") == following
    assert again.progress().answered == 3
    again.close()


def test_the_queue_is_extended_when_its_first_batch_is_answered(tmp_path):
    partition, true = planted(n=200)
    session = open_session(write_run(tmp_path / "run", partition), budget=30)
    n_shown = 0
    while (question := session.next("a")) is not None:
        row = question.row
        is_right = true[row] == partition.labels[row]
        verdict = "right" if is_right else "wrong"
        session.answer(row, verdict, int(true[row]), "a", repeat=question.repeat)
        n_shown += 1
    assert n_shown == 30
    assert session.queue.n_batches == 2
    assert session.more(10) == 40
    assert session.next("a") is not None
    session.close()


def test_a_skipped_question_waits_until_it_is_n_shown_for(tmp_path):
    partition, _ = planted(n=100)
    session = open_session(write_run(tmp_path / "run", partition), budget=10)
    first = session.next("a")
    session.answer(first.row, "skip", None, "a")
    rows = set()
    while (question := session.next("a")) is not None:
        rows.add(question.row)
        session.answer(question.row, "right", None, "a", repeat=question.repeat)
    assert first.row not in rows
    assert session.next("a", with_skipped=True).row == first.row
    session.close()


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("image", {"image.png": PNG}),
        (
            "sound",
            {"sound.wav": b"RIFF", "waveform.png": b"\x89PNG", "spectrogram.png": b"\x89PNG"},
        ),
        ("table", {}),
        ("none", {}),
    ],
)
def test_every_kind_of_input_is_shown(tmp_path, kind, files):
    partition, _ = planted(n=60)
    folder = write_run(tmp_path / "run", partition)
    with running(folder, partition, kind) as client:
        card = client.get("card/3")["card"]
        assert card["kind"] == kind
        assert len(card["neighbours"]) == 8
        assert ("numbers" in card) == (kind == "table")
        for name in ("image.png", "sound.wav", "waveform.png", "spectrogram.png", "x.png"):
            response, content = client.raw("GET", f"/{TOKEN}/media/3/{name}")
            assert (response.status == 200) == (name in files), name
            if name in files:
                assert content.startswith(files[name])


def test_texts_and_columns_of_the_training_data_are_shown(tmp_path):
    partition, _ = planted(n=50)
    session = open_session(write_run(tmp_path / "run", partition), budget=10)
    texts = [f"text {name}" for name in partition.ids]
    inputs = TextInputs({"input_ids": [[1]] * 50}, texts=texts)
    samples = replace(samples_of(partition, "table", "abcd"), inputs=inputs)
    cards = Cards(partition, session.run.scores, tuple("abcd"), samples=samples)
    assert cards.card(3, partition)["text"] == texts[3]
    table = replace(samples_of(partition, "table", "abcd"), columns=tuple("ABCDEFGHIJKL"))
    cards = Cards(partition, session.run.scores, tuple("abcd"), samples=table)
    assert [number["column"] for number in cards.card(3, partition)["numbers"]] == [*"ABCDEFGHIJKL"]
    session.close()


def test_neighbours_are_the_nearest(tmp_path):
    partition, _ = planted(n=80)
    session = open_session(write_run(tmp_path / "run", partition), budget=10)
    probs = session.run.scores.class_probs
    cards = Cards(partition, session.run.scores, tuple("abcd"))
    distance = ((probs - probs[5]) ** 2).sum(axis=1)
    distance[5] = np.inf
    found = distance[cards.neighbours(5)]
    np.testing.assert_allclose(found, np.sort(distance)[:8], atol=1e-6)
    session.close()


def test_cards_show_the_evidence_of_a_detection_without_probabilities():
    rng = np.random.default_rng(0)
    right = np.repeat([0, 1, 2], 40)
    given = right.copy()
    given[::10] = (right[::10] + 1) % 3
    result = expunge.detect(np.eye(3)[right] * 8 + rng.standard_normal((120, 3)), given)
    assert result.scores is not None
    cards = Cards(result, result.scores, tuple("abc"))
    card = cards.card(50, result)
    assert card["suggestions"][0]["name"] == "b"
    assert card["suggestions"][0]["probability"] > 0.5
    assert "and 'b' one of" in card["reasons"][0]
    assert np.mean(right[cards.neighbours(50)] == right[50]) == 1


def test_an_answer_takes_no_longer_with_many_samples(tmp_path):
    """The estimate over all samples is made by another thread."""
    partition, _ = planted(n=200_000)
    session = open_session(write_run(tmp_path / "run", partition), budget=100)
    started = time.thread_time()
    for _ in range(5):
        session.answer(session.next("a").row, "right", None, "a")
    assert (time.thread_time() - started) / 5 < 0.1
    rows, total = session.select(Filters(label=1, low=0.5))
    assert 0 < len(rows) == min(total, 50)
    session.close()


def test_unknown_rows_are_refused(tmp_path):
    partition, _ = planted(n=50)
    session = open_session(write_run(tmp_path / "run", partition), budget=10)
    with pytest.raises(DataError, match="there is no sample -1"):
        session.answer(-1, "right", None, "a")
    session.close()
