"""The scripts and files of docs/howto/scripts.md, for tests that run and check them."""

import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = (Path(__file__).parents[2] / "docs" / "howto" / "scripts.md").read_text()
_BLOCK = re.compile(r"^```(\w+) ?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file that it is, its text, and its section."""

    language: str
    file: str
    text: str
    section: str


def blocks() -> list[Block]:
    """Return all blocks, in their order."""
    return [
        Block(found[1], found[2], found[3], _HEADING.findall(DOCUMENT[: found.start()])[-1])
        for found in _BLOCK.finditer(DOCUMENT)
    ]


def scripts() -> list[tuple[Block, str | None]]:
    """Return each script, with the output that is shown after it."""
    pairs = zip(blocks(), [*blocks()[1:], None], strict=True)
    return [
        (block, after.text if after and after.language == "text" else None)
        for block, after in pairs
        if block.language == "python"
    ]


def files() -> list[Block]:
    """Return the blocks that are files."""
    return [block for block in blocks() if block.file]
