"""All texts of the window are in its catalogue; texts of others are harmless.

PCM_REWRITE=1 writes the catalogue anew.
"""

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import agents.window
from agents.window.texts import clean

_WINDOW = Path(agents.window.__file__).parent
_CATALOGUE = _WINDOW / "locale" / "pcm.pot"
_HEAD = 'msgid ""\nmsgstr "Content-Type: text/plain; charset=UTF-8\\n"\n'


def _calls() -> Iterator[tuple[str, ...]]:
    for file in sorted(_WINDOW.glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                count = {"_": 1, "many": 2}.get(node.func.id, 0)
                if count:
                    yield tuple(ast.literal_eval(text) for text in node.args[:count])


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _entry(texts: tuple[str, ...]) -> str:
    if len(texts) == 1:
        return f'msgid {_quoted(texts[0])}\nmsgstr ""\n'
    one, several = map(_quoted, texts)
    return f'msgid {one}\nmsgid_plural {several}\nmsgstr[0] ""\nmsgstr[1] ""\n'


def test_the_catalogue_has_all_texts() -> None:
    wanted = "\n".join([_HEAD, *map(_entry, sorted(set(_calls())))])
    if os.environ.get("PCM_REWRITE"):
        _CATALOGUE.write_text(wanted)
    assert _CATALOGUE.read_text() == wanted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \u00fc \u65e5\u672c", "plain \u00fc \u65e5\u672c"),
        ("\x1b[31m", "\u241b[31m"),
        ("a\nb\tc\x7f", "a\u240ab\u2409c\u2421"),
        ("a\u00a0b", "a b"),
        ("\u202egnp.exe\u200b", "\ufffdgnp.exe\ufffd"),
        ("\x9b2J", "\ufffd2J"),
    ],
)
def test_texts_of_others_are_made_harmless(text: str, shown: str) -> None:
    assert clean(text) == shown
