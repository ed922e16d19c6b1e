"""The charts of a report: SVG, with no more than the page's own colours."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from broker.results.report.content import KINDS, ReportContent, ends

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 26
_POINTS = 240  # as many as can be told apart
_TICKS = (1, 2, 5)
_STEPS = (1, 2, 5, 10, 15, 30)
_UNITS = ((1, "%H:%M:%S"), (60, "%H:%M"), (3600, "%H:%M"), (86400, "%m-%d"))
_MOST_TICKS = 6


Scale = Callable[[float], float]


class Bar(NamedTuple):
    """A bar: what it is of, its length, the text at its end, and the kind that colours it."""

    label: str
    value: float
    text: str
    kind: str


def progress(account: ReportContent) -> str:
    """Return how the ends came in over time: stacked areas of successes, failures and others."""
    told = ends(account)
    if not told:
        return ""
    begin = min(account.job.created_at, told[0][0])
    end = max(told[-1][0], account.now if account.job.open else told[-1][0], begin + 1)
    top = max(account.job.counts.total(), 1)

    def x(at: float) -> float:
        return _LEFT + (at - begin) / (end - begin) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _TOP + (1 - count / top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_count_axis(top, y), *_time_axis(begin, end, x)]
    points = [(begin, dict.fromkeys(KINDS, 0)), *_thinned(told, begin, end), (end, told[-1][1])]
    # The uppermost first: each covers what the ones below it are.
    for place in range(len(KINDS), 0, -1):
        heights = [(at, sum(counts[name] for name in KINDS[:place])) for at, counts in points]
        if heights[-1][1]:
            parts.append(f'<path class="area {KINDS[place - 1]}" d="{_steps(heights, x, y)}"/>')
    final = told[-1][1]
    words = ", ".join(f"{final[name]:,} {name}" for name in KINDS if final[name])
    return _svg(_HEIGHT, f"Ends over time: {words} of {top:,}", parts)


def _thinned(
    told: list[tuple[float, dict[str, int]]], begin: float, end: float
) -> list[tuple[float, dict[str, int]]]:
    """Return the last of the points of each moment that can be told apart."""
    moments = {int((at - begin) / (end - begin) * _POINTS): (at, counts) for at, counts in told}
    return list(moments.values())


def _steps(heights: Sequence[tuple[float, int]], x: Scale, y: Scale) -> str:
    line = [f"M{x(heights[0][0]):.1f},{y(0):.1f}"]
    for at, height in heights:
        line.append(f"H{x(at):.1f}V{y(height):.1f}")
    return "".join(line) + f"V{y(0):.1f}Z"


def _count_axis(top: int, y: Scale) -> Iterator[str]:
    step = _step(top)
    for count in range(0, top + 1, step):
        yield _line("grid", (_LEFT, y(count)), (_WIDTH - _RIGHT, y(count)))
        yield _words("tick end", _LEFT - 6, y(count) + 4, f"{count:,}")


def _step(top: int) -> int:
    """Return the distance of a count axis's ticks."""
    size = 1
    while True:
        for tick in _TICKS:
            if top / (tick * size) <= _MOST_TICKS - 1:
                return tick * size
        size *= 10


def _time_axis(begin: float, end: float, x: Scale) -> Iterator[str]:
    step, form = _time_step(end - begin)
    offset = datetime.fromtimestamp(begin, UTC).astimezone().utcoffset()
    shift = offset.total_seconds() if offset else 0.0
    at = ((begin + shift) // step + 1) * step - shift
    while at <= end:
        clock = datetime.fromtimestamp(at, UTC).astimezone()
        place = "middle" if x(at) < _WIDTH - 40 else "end"
        yield _words(f"tick {place}", x(at), _HEIGHT - 8, f"{clock:{form}}")
        yield _line("mark", (x(at), _HEIGHT - _BOTTOM), (x(at), _HEIGHT - _BOTTOM + 4))
        at += step


def _time_step(length: float) -> tuple[int, str]:
    for unit, form in _UNITS:
        for step in _STEPS:
            if length / (unit * step) <= _MOST_TICKS:
                return unit * step, form
    days = 86400 * 60
    while length / days > _MOST_TICKS:
        days *= 2
    return days, "%Y-%m-%d"


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Return bars under each other; nothing where there are none."""
    most = max((row.value for row in rows), default=0)
    if most <= 0:
        return ""
    height, left, right = 26, 170, 104
    scale = (_WIDTH - left - right) / most
    parts = []
    for place, row in enumerate(rows):
        top = place * height + 4
        length = max(row.value * scale, 2)
        parts += [
            _words("label end", left - 8, top + 13, _cut(row.label), row.label),
            _box(row.kind, left, top, length),
            _words("label", left + length + 7, top + 13, row.text),
        ]
    return _svg(len(rows) * height + 4, title, parts)


def _cut(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _line(of: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{of}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(of: str, x: float, y: float, width: float) -> str:
    return f'<rect class="{of}" x="{x}" y="{y}" width="{width:.1f}" height="18" rx="2"/>'


def _words(of: str, x: float, y: float, text: str, whole: str = "") -> str:
    more = f"<title>{escape(whole)}</title>" if whole and whole != text else ""
    return f'<text class="{of}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{more}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
