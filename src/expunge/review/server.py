"""The web server of a review: the loopback interface only, a token in the address, our own assets.

Requests are refused (403) without the token, from another origin, or for another host name, so that
no other page and no name that resolves to this machine can read or answer anything. A strict
content security policy forbids everything that does not come from the server itself.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Literal

from expunge.errors import DataError, ExpungeError, RunError, extra_required
from expunge.review.cards import Cards
from expunge.review.filters import Filters
from expunge.review.guard import LOOPBACK, Guard
from expunge.review.session import (
    MAX_PAGE,
    Question,
    ReviewSession,
    projected_half_width,
)

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_ASSETS = {"": "text/html", "review.js": "text/javascript", "review.css": "text/css"}
_MAX_BODY = 64 * 1024
# More classes than this are found by typing; the page does not load their names.
_MAX_LISTED_CLASSES = 300
_MAX_FOUND_CLASSES = 30
_NEXT_BATCH = 60


Suggestions = Literal["after", "at-once", "never"]


class ReviewServer:
    """The pages and the interface of a review.

    Parameters
    ----------
    session
        The review.
    cards
        What it shows.
    token
        The secret in the address; a new one by default.
    suggestions
        When suggestions and reasons are shown: ``"after"`` the given label was called wrong,
        ``"at-once"`` or ``"never"``. Samples that were chosen from the grid show them at once.
    """

    def __init__(
        self,
        session: ReviewSession,
        cards: Cards,
        *,
        token: str = "",
        suggestions: Suggestions = "after",
    ) -> None:
        self._session, self._cards, self._suggestions = session, cards, suggestions
        self.token = token or secrets.token_urlsafe(24)

    def app(self, port: int) -> Starlette:
        """The application, for a server that listens on this port."""
        try:
            from starlette.applications import Starlette
            from starlette.routing import Route
        except ImportError as error:
            raise extra_required("starlette", "review") from error

        reads: dict[str, Callable[[Request], Any]] = {
            "state": self._state,
            "next": self._next,
            "card/{row:int}": self._card,
            "list": self._list,
            "classes": self._classes,
            "progress": self._progress,
        }
        writes = {"answer": self._answer, "undo": self._undo, "more": self._more}
        routes = [Route(f"/{{token}}/{name}", partial(_asset, name)) for name in _ASSETS]
        for name, read in reads.items():
            routes.append(Route(f"/{{token}}/api/{name}", partial(_json, read)))
        for name, write in writes.items():
            routes.append(
                Route(f"/{{token}}/api/{name}", partial(_posted, write), methods=["POST"])
            )
        routes.append(Route("/{token}/media/{row:int}/{name}", self._media))
        return Starlette(routes=routes, middleware=[self._guard(port)])

    def _guard(self, port: int) -> Any:
        from starlette.middleware import Middleware

        hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"}
        return Middleware(Guard, token=self.token, hosts=hosts)

    # Read

    def _state(self, request: Request) -> dict[str, Any]:
        session = self._session
        names = session.classes if len(session.classes) <= _MAX_LISTED_CLASSES else ()
        return {
            "run": session.run.folder.name,
            "classes": list(names),
            "n_classes": len(session.classes),
            "n": len(session.partition.ids),
            "kind": self._cards.kind,
            "suggestions": self._suggestions,
            "progress": self._progress(request),
        }

    def _next(self, request: Request) -> dict[str, Any]:
        reviewer = request.query_params.get("reviewer", "")
        again = request.query_params.get("skipped") == "1"
        return self._question(self._session.next(reviewer, with_skipped=again))

    def _question(self, question: Question | None) -> dict[str, Any]:
        if question is None:
            return {"done": True, "progress": self._facts()}
        card = self._full_card(question.row, hide_answers=True)
        return {"done": False, "repeat": question.repeat, "card": card}

    def _card(self, request: Request) -> dict[str, Any]:
        row = int(request.path_params["row"])
        self._session.check_row(row)
        return {"done": False, "repeat": False, "card": self._full_card(row)}

    def _full_card(self, row: int, *, hide_answers: bool = False) -> dict[str, Any]:
        card = self._cards.card(row, self._by_now(), blind=self._suggestions == "never")
        answers = [] if hide_answers else self._session.answers_of(row)
        classes = self._session.classes
        card["answers"] = [
            {
                "reviewer": a.reviewer,
                "time": a.time,
                "verdict": a.verdict,
                "label": None if a.label is None else classes[a.label],
            }
            for a in answers
        ]
        return card

    def _by_now(self) -> Any:
        return self._session.progress().review.partition

    def _list(self, request: Request) -> dict[str, Any]:
        query = request.query_params
        try:
            filters = Filters(
                label=int(query["label"]) if query.get("label") else None,
                kind=query.get("kind") or None,
                low=float(query.get("low") or 0),
                high=float(query.get("high") or 1),
                flagged={"1": True, "0": False}.get(query.get("flagged", "")),
                text=query.get("text", ""),
                status=query.get("status", ""),
            )
            offset, limit = int(query.get("offset") or 0), int(query.get("limit") or 48)
        except ValueError as error:
            raise DataError(f"a filter is not valid: {error}") from error
        rows, total = self._session.select(filters, offset=offset, limit=min(limit, MAX_PAGE))
        partition = self._by_now()
        return {"total": total, "tiles": [self._cards.tile(int(r), partition) for r in rows]}

    def _classes(self, request: Request) -> list[dict[str, Any]]:
        wanted = request.query_params.get("q", "").casefold()[:100]
        names = [(k, name) for k, name in enumerate(self._session.classes)]
        found = [(k, name) for k, name in names if wanted in name.casefold()]
        found.sort(key=lambda pair: (not pair[1].casefold().startswith(wanted), len(pair[1])))
        return [{"label": k, "name": name} for k, name in found[:_MAX_FOUND_CLASSES]]

    def _progress(self, request: Request) -> dict[str, Any]:
        return self._facts()

    def _facts(self) -> dict[str, Any]:
        found = self._session.progress()
        review = found.review
        left = max(found.budget - found.answered, 0) or _NEXT_BATCH
        return {
            "answered": found.answered,
            "budget": found.budget,
            "skipped": found.skipped,
            "disputed": found.disputed,
            "rate": list(review.noise_rate),
            "design_based": review.is_design_based,
            "more": left,
            "half_width": projected_half_width(review, found.answered, left),
            "mistakes": review.mistakes,
            "flagged": int(review.partition.flagged.sum()),
            "n": len(review.partition.ids),
            "current": found.version == self._session.version,
        }

    def _media(self, request: Request) -> Response:
        from starlette.responses import Response

        row = int(request.path_params["row"])
        makers: dict[str, tuple[Callable[[int], bytes], str]] = {
            "image.png": (self._cards.image, "image/png"),
            "sound.wav": (self._cards.sound, "audio/wav"),
            "waveform.png": (self._cards.waveform, "image/png"),
            "spectrogram.png": (self._cards.spectrogram, "image/png"),
        }
        try:
            self._session.check_row(row)
            make, kind = makers[request.path_params["name"]]
            content = make(row)
        except (DataError, KeyError):
            return Response("there is no such file", 404, media_type="text/plain")
        # Samples do not change while the server runs.
        return Response(content, media_type=kind, headers={"Cache-Control": "private, max-age=600"})

    # Write

    def _answer(self, given: dict[str, Any]) -> dict[str, Any]:
        row, label, verdict = given.get("row"), given.get("label"), given.get("verdict")
        if not _is_index(row) or not (label is None or _is_index(label)):
            raise DataError("expected row and label to be integers")
        answer = self._session.answer(
            int(str(row)),
            str(verdict),  # type: ignore[arg-type]  # an unknown one is refused there
            label,
            _reviewer(given),
            repeat=given.get("repeat") is True,
        )
        return {"saved": asdict(answer), "progress": self._facts()}

    def _undo(self, given: dict[str, Any]) -> dict[str, Any]:
        question = self._session.undo(_reviewer(given))
        if question is None:
            raise DataError("there is no answer of yours to undo")
        return self._question(question)

    def _more(self, given: dict[str, Any]) -> dict[str, Any]:
        n = given.get("n", _NEXT_BATCH)
        if not _is_index(n):
            raise DataError("expected n to be an integer")
        return {"budget": self._session.more(n)}


def _is_index(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _reviewer(given: dict[str, Any]) -> str:
    name = given.get("reviewer", "")
    if not isinstance(name, str):
        raise DataError("expected reviewer to be text")
    return name.strip()


def _asset(name: str, request: Request) -> Response:
    from starlette.responses import Response

    content = files("expunge.review").joinpath("page", name or "index.html").read_text("utf-8")
    return Response(content, media_type=_ASSETS[name])


def _json(read: Callable[[Request], Any], request: Request) -> Response:
    """Answer with JSON; an error of ours becomes a message and a status."""
    from starlette.responses import JSONResponse

    try:
        return JSONResponse(read(request))
    except ExpungeError as error:
        return JSONResponse({"error": str(error)}, 409 if isinstance(error, RunError) else 400)


async def _posted(write: Callable[[dict[str, Any]], Any], request: Request) -> Response:
    """Read a JSON object, and answer in a thread: writing waits for the disk."""
    import json

    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse

    if request.headers.get("content-type", "").split(";")[0] != "application/json":
        return JSONResponse({"error": "expected application/json"}, 415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            return JSONResponse({"error": "the request is too large"}, 413)
    try:
        given = json.loads(body)
        if not isinstance(given, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        return JSONResponse({"error": f"expected a JSON object: {error}"}, 400)
    return await run_in_threadpool(_json, lambda _: write(given), request)


def serve(server: ReviewServer, listening: socket.socket) -> None:
    """Serve until the process is interrupted.

    Raises
    ------
    ConfigError
        If the extra ``review`` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise extra_required("uvicorn", "review") from error
    app = server.app(listening.getsockname()[1])
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="off", server_header=False
    )
    uvicorn.Server(config).run(sockets=[listening])


def address(server: ReviewServer, listening: socket.socket) -> str:
    """Where the page is, with its token."""
    return f"http://{LOOPBACK}:{listening.getsockname()[1]}/{server.token}/"
