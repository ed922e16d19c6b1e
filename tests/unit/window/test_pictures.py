"""The main states look as in the stored pictures, and as in the pictures of the documents.

PCM_REWRITE=1 writes the pictures again: look at what changed before you keep it.
"""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import scenes
from tests.support.looking import Clock, looking
from tests.support.standin import StandIn

_GOLDEN = Path(__file__).with_name("golden")
_DOCUMENTS = Path(__file__).parents[3] / "docs" / "howto"
_SIZES = ((80, 24), (140, 40))
_STATES = {
    "offers": ((), "Office update", "q Close"),
    "dialog": (("p",), "as long as possible", "esc Back"),
    "running": (("2",), "floor-3-mono", "s Stop"),
    "history": (("3",), "Scanner driver", "/ Search"),
}


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize("size", _SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("state", _STATES)
async def test_the_window_looks_as_before(
    state: str, size: tuple[int, int], tmp_path: Path
) -> None:
    keys, *seen = _STATES[state]
    agent = StandIn()
    agent.snapshot = scenes.busy()
    agent.output = {scenes.RUNNING[0]["job"]: scenes.OUTPUT}
    async with agent.serving(tmp_path), looking(tmp_path, size, Clock()) as window:
        await window.until("ada on ws-042")
        await window.press(*keys)
        for text in seen:
            shown = await window.until(text)
        drawn = window.app.export_screenshot()
    picture = _GOLDEN / f"{state}-{size[0]}x{size[1]}.txt"
    documented = _DOCUMENTS / f"window-{state}.svg"
    is_documented = documented.exists() and size == _SIZES[0]
    if os.environ.get("PCM_REWRITE"):
        picture.write_text(shown)
        if is_documented:
            documented.write_text(_without_web_fonts(drawn))
    assert shown == picture.read_text()
    if is_documented:
        assert _texts(drawn) == _texts(documented.read_text())


def _without_web_fonts(svg: str) -> str:
    return re.sub(r"@font-face \{[^}]*\}\s*", "", svg).replace("Fira Code, ", "")


def _texts(svg: str) -> list[str]:
    return re.findall(r">([^<>]+)</text>", svg)
