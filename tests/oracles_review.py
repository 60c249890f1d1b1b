"""Partitions with planted noise, and reviewers who know the truth, for the tests of the review."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import expit

from expunge.data import Samples, TensorInputs
from expunge.records import Partition, Scores
from expunge.review import Answer, Item
from expunge.review.answers import latest
from expunge.review.cards import Cards
from expunge.review.formats import BAD_INPUT, CANNOT_TELL
from expunge.review.guard import LOOPBACK, bind
from expunge.review.run_files import open_reviewed_run
from expunge.review.server import ReviewServer
from expunge.review.session import ReviewSession
from expunge.storage import serialization
from expunge.storage.run_folder import open_run


def planted(seed: int = 0, n: int = 2000, shift: float = -1.5) -> tuple[Partition, np.ndarray]:
    """A partition with the right order and a rate that is far too low; and the true labels."""
    rng = np.random.default_rng(seed)
    evidence = rng.standard_normal(n) * 2.5 - 1.5
    wrong = rng.random(n) < expit(evidence)
    labels = rng.integers(0, 4, n)
    p = expit(evidence + shift)
    true = np.where(wrong, (labels + 1) % 4, labels)
    partition = Partition(
        ids=np.arange(n) * 3,
        labels=labels,
        p_noisy=p,
        p_label_fault=p,
        p_input_fault=np.zeros(n),
        suggested_label=np.where(p > 0.02, (labels + 1) % 4, labels),
        suggested_probability=np.maximum(p, 0.3),
        threshold=0.5,
        noise_rate=(float(p.mean()), 0.0, 0.2),
        evidence={"label_evidence": evidence},
    )
    return partition, true


@contextmanager
def opened_review(
    folder: Path, kind: str, classes: Sequence[str]
) -> Iterator[tuple[ReviewSession, Cards, np.ndarray]]:
    """The session and cards of a review of 200 samples, with a budget of 20; the true labels."""
    partition, true = planted(n=200)
    session = open_session(write_run(folder / "run", partition), classes, budget=20)
    samples = samples_of(partition, kind, classes)
    yield session, Cards(partition, session.run.scores, classes, samples=samples), true
    session.close()


def answers_of(
    items: Iterable[Item],
    partition: Partition,
    true: np.ndarray,
    *,
    mistakes: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """Answers from the true labels; a mistake calls a right label wrong or a wrong one right."""
    rng, row = np.random.default_rng(seed), {int(i): k for k, i in enumerate(partition.ids)}
    found = []
    for item in items:
        k = row[item.id]
        given, label = int(partition.labels[k]), int(true[k])
        if rng.random() < mistakes:
            label = (given + 1) % 4 if label == given else given
        verdict = "right" if label == given else "wrong"
        found.append(Answer(item.id, verdict, label, "a", repeat=item.repeat, draw=item.draw))
    return found


def planted_scores(partition: Partition, classes: int = 4) -> Scores:
    """Scores that agree with a partition."""
    n = len(partition.ids)
    probs = np.full((n, classes), 0.02)
    p = partition.p_label_fault
    probs[np.arange(n), partition.suggested_label] = p
    probs[np.arange(n), partition.labels] += 1 - p
    probs /= probs.sum(axis=1, keepdims=True)
    return Scores(
        ids=partition.ids,
        labels=partition.labels,
        values={"lda_margin": partition.evidence["label_evidence"]},
        kinds={"lda_margin": "label"},
        class_probs=probs,
    )


def write_run(folder: Path, partition: Partition, classes: int = 4) -> Path:
    """A run folder with the stages that a review reads."""
    with open_run(folder, {"planted": True}) as run:
        scores = planted_scores(partition, classes)
        run.stage("1-score", {"planted": 1}, lambda: serialization.SCORES.store(scores))
        run.stage("2-partition", {"planted": 2}, lambda: serialization.PARTITION.store(partition))
    return folder


def open_session(folder: Path, classes: Sequence[str] = "abcd", **options: Any) -> ReviewSession:
    """A session in a run folder of `write_run`."""
    return ReviewSession(open_reviewed_run(folder), tuple(classes), **options)


def samples_of(partition: Partition, kind: str, classes: Sequence[str] = "abcd") -> Samples:
    """Inputs of a kind for the samples of a partition."""
    rng, n = np.random.default_rng(0), len(partition.ids)
    x = rng.standard_normal((n, 12)).astype(np.float32)
    rate = None
    if kind == "image":
        x = (rng.random((n, 3, 8, 8)) * 255).astype(np.uint8)
    if kind == "sound":
        rate = 8000
        x = np.sin(np.outer(rng.uniform(0.1, 1, n), np.arange(800))).astype(np.float32)
    return Samples(
        partition.ids,
        partition.labels,
        tuple(classes),
        TensorInputs(torch.from_numpy(x)),
        has_explicit_ids=True,
        sample_rate=rate,
    )


def choice_of(session: ReviewSession, true: np.ndarray, name: int | str) -> str:
    """What somebody chooses in another tool: mostly the true class."""
    row = int(session.rows([name])[0])
    return {0: BAD_INPUT, 1: CANNOT_TELL}.get(row % 10, session.classes[true[row]])


def check_exchanged(session: ReviewSession, true: np.ndarray) -> None:
    """The answers of a session are those of `choice_of`, with how each sample was drawn."""
    answers = latest(session.log.read())
    assert len(answers) >= 10
    for answer in answers:
        choice, row = choice_of(session, true, answer.id), int(session.rows([answer.id])[0])
        if choice == BAD_INPUT:
            assert answer.verdict == "bad-input"
        elif choice == CANNOT_TELL:
            assert answer.verdict == "cannot-tell"
        else:
            is_right = true[row] == session.partition.labels[row]
            assert answer.verdict == ("right" if is_right else "wrong")
            assert session.classes[answer.label] == choice
        assert answer.draw is not None
    assert session.progress().review.is_design_based


TOKEN = "secret"


class Client(NamedTuple):
    """Requests to a running server."""

    port: int
    session: Any

    def raw(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """The response and its body."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=30)
        content = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if content is not None else {}
        connection.request(method, path, content, {**sent, **headers})
        response = connection.getresponse()
        found = response.read()
        connection.close()
        return response, found

    @property
    def address(self) -> str:
        """The page."""
        return f"http://{LOOPBACK}:{self.port}/{TOKEN}/"

    def get(self, name: str, status: int = 200) -> Any:
        """What the interface answers."""
        response, content = self.raw("GET", f"/{TOKEN}/api/{name}")
        assert response.status == status, content
        return json.loads(content)

    def post(self, name: str, body: Any, status: int = 200) -> Any:
        """What the interface answers to an object."""
        response, content = self.raw("POST", f"/{TOKEN}/api/{name}", body)
        assert response.status == status, content
        return json.loads(content)


@contextmanager
def running(
    folder: Path,
    partition: Partition,
    kind: str = "image",
    classes: Sequence[str] = "abcd",
    texts: dict[str, str] | None = None,
    **options: Any,
) -> Iterator[Client]:
    """A server on a run folder, in a thread."""
    import uvicorn

    session = open_session(folder, classes, **options)
    samples = None if kind in ("none", "text") else samples_of(partition, kind, classes)
    cards = Cards(partition, session.run.scores, tuple(classes), samples=samples, texts=texts)
    listening = bind()
    port = listening.getsockname()[1]
    app = ReviewServer(session, cards, token=TOKEN).app(port)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield Client(port, session)
    finally:
        server.should_exit = True
        thread.join()
        session.close()
