"""Draw a report's charts as SVG in the page's colours."""

from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from typing import NamedTuple

from broker.results.report.content import END_GROUPS, ReportContent, ends

_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 12, 10, 26
_POINTS = 240  # more are not distinguishable
_TICKS = (1, 2, 5)
_STEPS = (1, 2, 5, 10, 15, 30)
_UNITS = ((1, "%H:%M:%S"), (60, "%H:%M"), (3600, "%H:%M"), (86400, "%m-%d"))
_MAX_TICKS = 6


Scale = Callable[[float], float]


class Bar(NamedTuple):
    """A bar; `value` is its length, `text` is printed at its end, `group` is its CSS class."""

    label: str
    value: float
    text: str
    group: str


def progress(content: ReportContent) -> str:
    """Draw the ends over time: stacked areas of successes, failures and others."""
    points = ends(content)
    if not points:
        return ""
    begin = min(content.job.created_at, points[0][0])
    end = max(points[-1][0], content.now if content.job.open else points[-1][0], begin + 1)
    top = max(content.job.counts.total(), 1)

    def x(at: float) -> float:
        return _LEFT + (at - begin) / (end - begin) * (_WIDTH - _LEFT - _RIGHT)

    def y(count: float) -> float:
        return _TOP + (1 - count / top) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [*_count_axis(top, y), *_time_axis(begin, end, x)]
    final = points[-1][1]
    points = [
        (begin, dict.fromkeys(END_GROUPS, 0)),
        *_thin_out(points, begin, end),
        (end, final),
    ]
    # The highest area first, since each area covers the ones drawn before it.
    for size in range(len(END_GROUPS), 0, -1):
        heights = [(at, sum(counts[name] for name in END_GROUPS[:size])) for at, counts in points]
        if heights[-1][1]:
            parts.append(f'<path class="area {END_GROUPS[size - 1]}" d="{_steps(heights, x, y)}"/>')
    totals = ", ".join(f"{final[name]:,} {name}" for name in END_GROUPS if final[name])
    return _svg(_HEIGHT, f"Ends over time: {totals} of {top:,}", parts)


def _thin_out(
    points: list[tuple[float, dict[str, int]]], begin: float, end: float
) -> list[tuple[float, dict[str, int]]]:
    """Return the last point of each of `_POINTS` intervals."""
    last = {int((at - begin) / (end - begin) * _POINTS): (at, counts) for at, counts in points}
    return list(last.values())


def _steps(heights: Sequence[tuple[float, int]], x: Scale, y: Scale) -> str:
    line = [f"M{x(heights[0][0]):.1f},{y(0):.1f}"]
    for at, height in heights:
        line.append(f"H{x(at):.1f}V{y(height):.1f}")
    return "".join(line) + f"V{y(0):.1f}Z"


def _count_axis(top: int, y: Scale) -> Iterator[str]:
    step = _step(top)
    for count in range(0, top + 1, step):
        yield _line("grid", (_LEFT, y(count)), (_WIDTH - _RIGHT, y(count)))
        yield _label("tick end", _LEFT - 6, y(count) + 4, f"{count:,}")


def _step(top: int) -> int:
    """Return the distance of a count axis's ticks."""
    size = 1
    while True:
        for tick in _TICKS:
            if top / (tick * size) <= _MAX_TICKS - 1:
                return tick * size
        size *= 10


def _time_axis(begin: float, end: float, x: Scale) -> Iterator[str]:
    step, format_ = _time_step(end - begin)
    offset = datetime.fromtimestamp(begin, UTC).astimezone().utcoffset()
    shift = offset.total_seconds() if offset else 0.0
    at = ((begin + shift) // step + 1) * step - shift
    while at <= end:
        clock = datetime.fromtimestamp(at, UTC).astimezone()
        anchor = "middle" if x(at) < _WIDTH - 40 else "end"
        yield _label(f"tick {anchor}", x(at), _HEIGHT - 8, f"{clock:{format_}}")
        yield _line("mark", (x(at), _HEIGHT - _BOTTOM), (x(at), _HEIGHT - _BOTTOM + 4))
        at += step


def _time_step(length: float) -> tuple[int, str]:
    for unit, format_ in _UNITS:
        for step in _STEPS:
            if length / (unit * step) <= _MAX_TICKS:
                return unit * step, format_
    days = 86400 * 60
    while length / days > _MAX_TICKS:
        days *= 2
    return days, "%Y-%m-%d"


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Draw horizontal bars; return an empty string if there are none."""
    largest = max((row.value for row in rows), default=0)
    if largest <= 0:
        return ""
    height, left, right = 26, 170, 104
    scale = (_WIDTH - left - right) / largest
    parts = []
    for index, row in enumerate(rows):
        top = index * height + 4
        length = max(row.value * scale, 2)
        parts += [
            _label("label end", left - 8, top + 13, _cut(row.label), row.label),
            _box(row.group, left, top, length),
            _label("label", left + length + 7, top + 13, row.text),
        ]
    return _svg(len(rows) * height + 4, title, parts)


def _cut(text: str, most: int = 22) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _line(class_: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{class_}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _box(class_: str, x: float, y: float, width: float) -> str:
    return f'<rect class="{class_}" x="{x}" y="{y}" width="{width:.1f}" height="18" rx="2"/>'


def _label(class_: str, x: float, y: float, text: str, full: str = "") -> str:
    title = f"<title>{escape(full)}</title>" if full and full != text else ""
    return f'<text class="{class_}" x="{x:.1f}" y="{y:.1f}">{escape(text)}{title}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
