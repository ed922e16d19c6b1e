"""The window in a browser: served by textual-serve, by a process of its own for each page.

A page of another site can speak to a server on this machine, too: whose host or origin is not the
server's own is refused. Where others than this machine's users can reach it, so is who does not
know the token.
"""

import hmac
import ipaddress
import secrets
import shlex
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp_jinja2
from aiohttp import web
from textual_serve.server import Server, to_int

from agents.store.state_folder import StateError
from agents.window.address import Address
from agents.window.themes import DARK, LIGHT

_FONT_SIZE = 16
_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PROGRAM = (sys.executable, "-P", "-c", "from agents.cli import main; main()", "window")


@asynccontextmanager
async def serving(address: Address, options: Sequence[str], *, light: bool) -> AsyncIterator[str]:
    """Serve windows that are opened with these options of `pcm-agent window`; yield the URL.

    Raises:
        StateError: nothing can be served there.
    """
    token = "" if address.loopback else secrets.token_urlsafe(24)
    command = shlex.join([*_PROGRAM, *options, *(["--light"] if light else [])])
    server = _Server(command, address, token, light=light)
    runner = web.AppRunner(await server.application(), access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise StateError(f"--web: {address}: {error.strerror or error}") from error
        port = runner.addresses[0][1]
        yield f"http://{_reachable(address, port)}/{f'?token={token}' if token else ''}"
    finally:
        await runner.cleanup()


def _reachable(address: Address, port: int) -> Address:
    """Return the address as a browser elsewhere can use it."""
    try:
        everywhere = ipaddress.ip_address(address.host).is_unspecified
    except ValueError:
        everywhere = False
    return Address(socket.gethostname() if everywhere else address.host, port)


class _Server(Server):
    """textual-serve with a page of ours, for those who may see it."""

    def __init__(self, command: str, address: Address, token: str, *, light: bool) -> None:
        here = str(Path(__file__).parent)
        super().__init__(command, title="Package Command Manager", templates_path=here)
        self._address = address
        self._token = token.encode()
        self._light = light

    async def application(self) -> web.Application:
        """Return what answers requests."""
        app = await self._make_app()
        app.middlewares.append(self._guard)
        app.on_response_prepare.append(_harden)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Print nothing: whoever serves tells the URL."""

    @web.middleware
    async def _guard(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not (self._is_own(request) and self._is_known(request)):
            raise web.HTTPForbidden(text="Open the address that pcm-agent printed." + "\n")
        return await handler(request)

    def _is_own(self, request: web.Request) -> bool:
        """Whether a request comes from a page of this server, and by a name of it."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return False
        host = urlsplit(f"//{request.host}").hostname
        return not self._address.loopback or host in {*_LOOPBACK_NAMES, self._address.host}

    def _is_known(self, request: web.Request) -> bool:
        shown = request.query.get("token") or request.cookies.get(_cookie(request), "")
        return hmac.compare_digest(shown.encode(errors="replace"), self._token) or not self._token

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Answer with the page."""
        theme = LIGHT if self._light else DARK
        scheme = "wss" if request.scheme == "https" else "ws"
        shown: dict[str, Any] = {
            "application": {"name": self.title},
            "app_websocket_url": f"{scheme}://{request.host}/ws",
            "font_size": to_int(request.query.get("fontsize", ""), _FONT_SIZE),
            "background": theme.background,
            "foreground": theme.foreground,
            "ended": "This window is closed.",
            "again": "Open it again",
        }
        response = aiohttp_jinja2.render_template("page.html", request, shown)
        if self._token:
            value = self._token.decode()
            response.set_cookie(_cookie(request), value, httponly=True, samesite="Strict")
        return response


def _cookie(request: web.Request) -> str:
    """Return the cookie's name: browsers do not part cookies by port."""
    return f"pcm-window-{urlsplit(f'//{request.host}').port or 80}"


async def _harden(_request: web.Request, response: web.StreamResponse) -> None:
    """Keep pages of others from framing ours, and the token from being told on."""
    response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
