"""The bridge as an ASGI application: who may come in, how many, and what each path does."""

import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from kibun.client.bridge import wire
from kibun.client.bridge.socket import Socket, converse
from kibun.client.bridge.streaming import stream
from kibun.client.bridge.watching import watch
from kibun.client.client import AsyncClient
from kibun.client.errors import ErrorDetails, InvalidRequestError, KibunError, ResourceExhaustedError

PAGE = Path(__file__).resolve().parent / "page"
DEMO = Path(__file__).resolve().parents[1] / "demo"

_HEADERS = {
    # Nothing from outside, nothing inline, and in nobody's frame.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",
}

Asgi = Callable[[Any, Any, Any], Awaitable[None]]
ClientOf = Callable[[str | None], AsyncClient]
Talk = Callable[[Socket, ClientOf], Awaitable[None]]


@dataclass(frozen=True)
class BridgeOptions:
    """What a bridge serves, and to whom."""

    # A client of the server, with the token that the socket gave.
    client_of: ClientOf
    # Pages of other hosts that may use it, as "https://robot.example"; those of its own may.
    origins: Sequence[str] = ()
    max_sockets: int = 64
    # Also serve the console, and with it the demo's dialogue.
    page: bool = False
    demo: bool = False


class Bridge:
    """The application, and how many sockets it has open."""

    def __init__(self, options: BridgeOptions) -> None:
        self._options = options
        self._hosts = {urlsplit(origin).netloc.lower() for origin in options.origins}
        self.open_sockets = 0

    def asgi(self) -> Asgi:
        routes: list[BaseRoute] = [
            WebSocketRoute("/v1/stream", lambda websocket: self._serve(websocket, stream)),
            WebSocketRoute("/v1/watch", lambda websocket: self._serve(websocket, watch)),
            Route("/v1/service_info", self._service_info),
        ]
        if self._options.demo:
            routes.append(Mount("/demo", StaticFiles(directory=DEMO)))
        if self._options.page:
            routes.append(Mount("/", StaticFiles(directory=PAGE, html=True)))
        else:
            routes.append(Route("/", _about))
        return _Guard(Starlette(routes=routes), self._hosts)

    async def _serve(self, websocket: WebSocket, talk: Talk) -> None:
        async def work(socket: Socket) -> None:
            self._check(websocket)
            with self._place():
                await talk(socket, self._options.client_of)

        await converse(websocket, work)

    @contextmanager
    def _place(self) -> Any:
        limit = self._options.max_sockets
        if self.open_sockets >= limit:
            raise ResourceExhaustedError(
                f"{limit} of {limit} sockets are in use: try again later, or start the bridge with more --max-sockets",
                ErrorDetails("TOO_MANY_SOCKETS", "RESOURCE_EXHAUSTED"),
            )
        self.open_sockets += 1
        try:
            yield
        finally:
            self.open_sockets -= 1

    def _check(self, websocket: WebSocket) -> None:
        """Programs send no Origin; a browser always does, and a page can neither leave it out nor change it."""
        if {"token", "access_token", "authorization"} & {name.lower() for name in websocket.query_params}:
            raise wire.refusal(
                "TOKEN_IN_URL", "token", "a token in the URL ends up in logs: send it in the first frame, as token"
            )
        origin, host = websocket.headers.get("origin"), websocket.headers.get("host")
        if origin is None or origin in self._options.origins or urlsplit(origin).netloc.lower() == host:
            return
        text = f"pages of {origin[:200]} may not use this bridge: start it with --origin {origin[:200]}"
        raise InvalidRequestError(text, ErrorDetails("ORIGIN_REFUSED", "PERMISSION_DENIED", fields={"Origin": text}))

    async def _service_info(self, request: Request) -> Response:
        """GetServiceInfoResponse as JSON; a token comes in the header Authorization."""
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        try:
            with self._place():
                async with self._options.client_of(token if scheme.lower() == "bearer" else None) as client:
                    text = wire.text_of(await client.service_info_proto())
        except KibunError as error:
            return Response(wire.error_text(error), 502, media_type="application/json")
        return Response(text, media_type="application/json")


def _about(request: Request) -> Response:
    return PlainTextResponse(
        "kibun bridge: WebSockets at /v1/stream and /v1/watch; for a page to look at, run `kibun console`\n"
    )


class _Guard:
    """Puts the headers on each answer, and turns away requests by a name that is not this machine's.

    The second is against pages that have their own name point to 127.0.0.1: their Origin is then also their Host.
    """

    def __init__(self, app: Asgi, hosts: set[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if not self._is_known(Headers(scope=scope).get("host", "")):
            text = "this name is not known here: start the bridge with --origin and the address that its pages have\n"
            await PlainTextResponse(text, 421, _HEADERS)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _is_known(self, host: str) -> bool:
        name = urlsplit(f"//{host}").hostname or ""
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name == "localhost" or host.lower() in self._hosts
        return True
