"""Serve the window to browsers with textual-serve, with one process for each page.

A page of another site can also send requests to a server on this machine. A request with another
host or origin than the server's own is therefore refused. Where other machines can reach the
server, so is a request without the token.
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
    """Serve windows, each opened by `pcm-agent window` with these options; yield the URL.

    Raises:
        StateError: the address cannot be used.
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
    """Return an address that browsers on other machines can use."""
    try:
        is_wildcard = ipaddress.ip_address(address.host).is_unspecified
    except ValueError:
        is_wildcard = False
    return Address(socket.gethostname() if is_wildcard else address.host, port)


class _Server(Server):
    """textual-serve with our page and access checks."""

    def __init__(self, command: str, address: Address, token: str, *, light: bool) -> None:
        folder = str(Path(__file__).parent)
        super().__init__(command, title="Package Command Manager", templates_path=folder)
        self._address = address
        self._token = token.encode()
        self._light = light

    async def application(self) -> web.Application:
        """Return the application with its checks and headers."""
        app = await self._make_app()
        app.middlewares.append(self._check_access)
        app.on_response_prepare.append(_add_security_headers)
        return app

    async def on_startup(self, app: web.Application) -> None:
        """Print nothing: the caller prints the URL."""

    @web.middleware
    async def _check_access(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        if not (self._is_same_origin(request) and self._has_token(request)):
            raise web.HTTPForbidden(text="Open the address that pcm-agent printed." + "\n")
        return await handler(request)

    def _is_same_origin(self, request: web.Request) -> bool:
        """Return whether a request has this server's origin, if any, and its host."""
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
            return False
        host = urlsplit(f"//{request.host}").hostname
        return not self._address.loopback or host in {*_LOOPBACK_NAMES, self._address.host}

    def _has_token(self, request: web.Request) -> bool:
        token = request.query.get("token") or request.cookies.get(_cookie(request), "")
        return hmac.compare_digest(token.encode(errors="replace"), self._token) or not self._token

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Return the page."""
        theme = LIGHT if self._light else DARK
        scheme = "wss" if request.scheme == "https" else "ws"
        context: dict[str, Any] = {
            "application": {"name": self.title},
            "app_websocket_url": f"{scheme}://{request.host}/ws",
            "font_size": to_int(request.query.get("fontsize", ""), _FONT_SIZE),
            "background": theme.background,
            "foreground": theme.foreground,
            "closed_text": "This window is closed.",
            "reopen_text": "Open it again",
        }
        response = aiohttp_jinja2.render_template("page.html", request, context)
        if self._token:
            value = self._token.decode()
            response.set_cookie(_cookie(request), value, httponly=True, samesite="Strict")
        return response


def _cookie(request: web.Request) -> str:
    """Return the cookie's name, with the port: browsers share cookies between ports."""
    return f"pcm-window-{urlsplit(f'//{request.host}').port or 80}"


async def _add_security_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Forbid framing by other pages, and keep the token out of referrers and caches."""
    response.headers["Content-Security-Policy"] = "frame-ancestors 'none'"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"
