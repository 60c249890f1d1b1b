"""Who may talk to the server of a review: this machine, with the token, from our own page."""

from __future__ import annotations

import hmac
import socket
from typing import Any

from expunge.errors import ConfigError

LOOPBACK = "127.0.0.1"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Refuses requests without the token, of other origins and for other hosts; adds headers."""

    def __init__(self, app: Any, token: str, hosts: set[str]) -> None:
        self._app, self._token, self._hosts = app, token.encode(), hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                own = [(k.lower().encode(), v.encode()) for k, v in _HEADERS.items()]
                set_already = {name for name, _ in message["headers"]}
                message["headers"] += [pair for pair in own if pair[0] not in set_already]
            await send(message)

        if self._is_allowed(scope):
            await self._app(scope, receive, send_with_headers)
        else:
            from starlette.responses import PlainTextResponse

            refused = PlainTextResponse("refused: open the address that expunge printed\n", 403)
            await refused(scope, receive, send_with_headers)

    def _is_allowed(self, scope: Any) -> bool:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        token = scope["path"].split("/")[1].encode() if "/" in scope["path"] else b""
        origin, host = headers.get("origin"), headers.get("host", "")
        return (
            hmac.compare_digest(token, self._token)
            and host in self._hosts
            and origin in (None, f"http://{host}")
            and headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        )


def bind(port: int = 0) -> socket.socket:
    """A socket on the loopback interface.

    Raises
    ------
    ConfigError
        If the port is taken or may not be used.
    """
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((LOOPBACK, port))
        listening.listen(128)
    except (OSError, OverflowError) as error:
        listening.close()
        raise ConfigError(
            f"port {port} cannot be used: {getattr(error, 'strerror', None) or error}",
            fix="name another one with --port, or leave it out for a free one",
        ) from error
    return listening
