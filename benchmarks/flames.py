"""Draws a flame graph of what a profiler saw: whose time went where.

    py-spy record --format raw --output STACKS --pid PID
    python -m benchmarks.flames STACKS docs/performance/flame-NAME.svg

A line of STACKS is a stack, its frames parted by semicolons, and how often it was seen. What waits
for something is left out: only work counts. A frame's width is its share of all; of the narrow
ones, what they are is left out.
"""

import re
import sys
from collections import defaultdict
from html import escape
from pathlib import Path

_WIDTH, _ROW, _NARROWEST = 1200.0, 15, 3.0
_LETTER = 5.6  # pixels
_LINE = re.compile(r":\d+\)$")
_WAITS = (
    "select (selectors.py",
    "wait (threading.py",
    "_worker (concurrent",
    "_run (agents/store/threads",
)
_HUES = {"agents/": 200, "broker/": 150, "schemas/": 270}  # others are grey


class _Frame:
    def __init__(self) -> None:
        self.seen = 0
        self.calls: defaultdict[str, _Frame] = defaultdict(_Frame)


def _counts(frame: str) -> bool:
    return " (" in frame and "<frozen importlib" not in frame


def read(lines: list[str]) -> _Frame:
    """Return the tree of all stacks that were at work."""
    root = _Frame()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        frames = [_LINE.sub(")", frame) for frame in stack.split(";") if _counts(frame)]
        if not frames or any(wait in frames[-1] for wait in _WAITS):
            continue
        place = root
        place.seen += int(count)
        for frame in frames:
            place = place.calls[frame]
            place.seen += int(count)
    return root


def _draw(frame: _Frame, name: str, left: float, depth: int, scale: float) -> list[str]:
    width = frame.seen * scale
    if width < _NARROWEST:
        return []
    where = next((hue for part, hue in _HUES.items() if part in name), None)
    colour = f"hsl({where},55%,75%)" if where is not None else "#ddd"
    share = 100 * width / _WIDTH
    y = depth * _ROW
    drawn = [f"<g><title>{escape(name)}: {share:.1f} %</title>"]
    drawn.append(
        f'<rect x="{left:.1f}" y="{y}"'
        f' width="{width - 0.5:.1f}" height="{_ROW - 1}" fill="{colour}"/>'
    )
    if fits := int(width / _LETTER) - 1:
        short = name if len(name) <= fits else name[: max(fits - 1, 0)]
        drawn.append(f'<text x="{left + 2:.1f}" y="{y + _ROW - 4}">{escape(short)}</text>')
    drawn.append("</g>")
    for called, below in sorted(frame.calls.items()):
        drawn += _draw(below, called, left, depth + 1, scale)
        left += below.seen * scale
    return drawn


def _depth(frame: _Frame, scale: float) -> int:
    wide = [below for below in frame.calls.values() if below.seen * scale >= _NARROWEST]
    return 1 + max((_depth(below, scale) for below in wide), default=0)


def draw(root: _Frame) -> str:
    """Return the picture, as SVG."""
    scale = _WIDTH / max(root.seen, 1)
    height = _ROW * _depth(root, scale)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height}"'
        ' font-family="monospace" font-size="9">'
    )
    return "\n".join([head, *_draw(root, "all that was at work", 0, 0, scale), "</svg>\n"])


def main() -> None:
    """Draw one."""
    stacks, picture = map(Path, sys.argv[1:])
    picture.write_text(draw(read(stacks.read_text().splitlines())))


if __name__ == "__main__":
    main()
