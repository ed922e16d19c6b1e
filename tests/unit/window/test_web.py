"""The window in a browser: who may see it, and that it works in a real one."""

import re

import aiohttp
import pytest

from agents.window.address import parse_address
from agents.window.web import serving


@pytest.mark.parametrize("text", ["", "8000", "host", "host:", ":80", "a:b", "::1:80", "h:70000"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|at most 65535"):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "loopback"),
    [("localhost:80", True), ("127.0.0.9:0", True), ("[::1]:80", True), ("0.0.0.0:80", False)],
)
def test_an_address_says_who_can_reach_it(text: str, *, loopback: bool) -> None:
    assert parse_address(text).loopback is loopback
    assert str(parse_address(text)) == text


async def _status(url: str, **headers: str) -> int:
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as response:
        return response.status


async def test_on_loopback_other_names_and_other_pages_are_refused() -> None:
    async with serving(parse_address("127.0.0.1:0"), (), light=False) as url:
        port = url.split(":")[2].rstrip("/")
        assert await _status(url) == 200
        assert await _status(f"{url}static/js/textual.js") == 200
        assert await _status(url, Host=f"evil.example:{port}") == 403
        assert await _status(f"{url}ws", Origin="http://evil.example") == 403
        assert await _status(url, Origin=url.rstrip("/")) == 200


async def test_elsewhere_the_token_opens_page_files_and_websocket() -> None:
    async with serving(parse_address("0.0.0.0:0"), (), light=False) as address:
        port, token = re.fullmatch(r"http://[^:]+:(\d+)/\?token=(\S{32})", address).groups()  # type: ignore[union-attr]
        url = f"http://127.0.0.1:{port}/"
        for path in ("", "static/js/textual.js", "ws", "download/x", "nothing"):
            assert await _status(f"{url}{path}") == 403, path
            assert await _status(f"{url}{path}?token=wrong") == 403, path
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(cookie_jar=jar) as client:
            async with client.get(f"{url}?token={token}") as page:
                assert page.status == 200
                assert "HttpOnly" in page.headers["Set-Cookie"]
                assert f"ws://127.0.0.1:{port}/ws" in await page.text()
                assert token not in await page.text()
            async with client.get(f"{url}static/js/textual.js") as script:
                assert script.status == 200


async def test_no_two_servers_have_the_same_token() -> None:
    async with (
        serving(parse_address("0.0.0.0:0"), (), light=False) as one,
        serving(parse_address("0.0.0.0:0"), (), light=False) as other,
    ):
        assert one.partition("token=")[2] != other.partition("token=")[2]
