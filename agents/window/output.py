"""The live output of a command: bounded, and redrawn at most ten times a second."""

import re
from dataclasses import dataclass
from typing import Any

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.reactive import var
from textual.scroll_view import ScrollView
from textual.strip import Strip

from agents.window.client import Client
from agents.window.model import format_result
from agents.window.snapshot import parse_ended
from agents.window.texts import clean

MAX_LINES = 20_000
_SPARE = 2_000
_MAX_LENGTH = 4_096
_PAUSE = 0.1
_ESCAPE_SEQUENCES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links and others
    r"|\x1b[ -/]*[0-~]?"
)
_PREFIXES = {"stdout": "  ", "stderr": "! ", "": "~ "}


@dataclass
class OutputLine:
    """A line of one stream, possibly still incomplete."""

    stream: str
    text: str = ""

    def add(self, text: str) -> None:
        """Append text; only the beginning of a very long line is kept."""
        if len(self.text) < _MAX_LENGTH:
            self.text += text[:_MAX_LENGTH]

    def displayed(self) -> str:
        """Return the text after the last carriage return, without escape sequences."""
        text = self.text.rstrip("\r").rpartition("\r")[2][:_MAX_LENGTH]
        return clean(_ESCAPE_SEQUENCES.sub("", text).expandtabs())


class LineBuffer:
    """The last lines of both streams, in the order received."""

    def __init__(self, max_lines: int = MAX_LINES) -> None:
        self._max_lines = max_lines
        self._lines: list[OutputLine] = []
        self._incomplete: dict[str, OutputLine] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> OutputLine:
        return self._lines[index]

    def add(self, stream: str, text: str) -> None:
        """Add text of a stream: part of a line, or several lines."""
        *complete, rest = text.split("\n")
        for line in complete:
            self._append(stream, line)
            self._incomplete.pop(stream, None)
        if rest:
            self._append(stream, rest)
        excess = len(self._lines) - self._max_lines
        if excess > _SPARE or 0 < excess == len(self._lines):
            del self._lines[:excess]
            self.dropped += excess

    def _append(self, stream: str, text: str) -> None:
        line = self._incomplete.get(stream)
        if line is None:
            line = self._incomplete[stream] = OutputLine(stream)
            self._lines.append(line)
        line.add(text)


class OutputView(ScrollView, can_focus=True):
    """Shows the output of a command; follows its end while the user is at the end."""

    COMPONENT_CLASSES = {"output--error", "output--note"}  # noqa: RUF012 - Textual's declaration
    empty: var[str] = var("")
    """The text shown while there is no output."""

    def __init__(self, **options: str) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.lines = LineBuffer()
        self._draw_scheduled = False
        self._dropped_drawn = 0
        self._at_end = True

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Follow the end of the output if the user scrolled there."""
        super().watch_scroll_y(old_value, new_value)
        if self.size.height:
            self._at_end = self.is_vertical_scroll_end

    def on_resize(self) -> None:
        """Redraw, and keep following the end."""
        self._schedule_draw()

    def start(self, empty: str) -> None:
        """Clear the output; show `empty` until there is some."""
        self.lines = LineBuffer()
        self.empty = empty
        self._dropped_drawn = 0
        self._at_end = True
        self._draw()

    def feed(self, stream: str, text: str) -> None:
        """Add output; it is drawn after a short pause."""
        self.lines.add(stream, text)
        self._schedule_draw()

    def note(self, text: str) -> None:
        """Add a line that is not output of the command."""
        self.lines.add("", f"{text}\n")
        self._schedule_draw()

    def note_dropped(self, size: int) -> None:
        """Add a line about output that was not kept."""
        self.note(f"{size} bytes omitted")

    def render_line(self, y: int) -> Strip:
        """Draw one line of the view."""
        scroll_x, scroll_y = self.scroll_offset
        index = y + scroll_y
        width = self.size.width
        plain = self.rich_style
        if index >= len(self.lines):
            text = f"  {self.empty}" if not self.lines and y == 0 else ""
            style = self._style("output--note")
            return Strip([Segment(text, style)], len(text)).adjust_cell_length(width, plain)
        line = self.lines[index]
        style = {"stdout": plain, "stderr": self._style("output--error")}.get(
            line.stream, self._style("output--note")
        )
        text = _PREFIXES.get(line.stream, "  ") + line.displayed()
        strip = Strip([Segment(text, style)], cell_len(text))
        return strip.crop_extend(scroll_x, scroll_x + width, plain)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(name)

    def _schedule_draw(self) -> None:
        if not self._draw_scheduled:
            self._draw_scheduled = True
            self.set_timer(_PAUSE, self._draw)

    def _draw(self) -> None:
        self._draw_scheduled = False
        newly_dropped = self.lines.dropped - self._dropped_drawn
        self._dropped_drawn = self.lines.dropped
        height = self.scrollable_content_region.height
        first = max(0, len(self.lines) - max(height, 1) * 4)
        widest = max((len(self.lines[n].text) for n in range(first, len(self.lines))), default=0)
        width = max(self.virtual_size.width, min(widest + 2, _MAX_LENGTH)) if self.lines else 0
        self.virtual_size = Size(width, len(self.lines))
        if self._at_end:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
        elif newly_dropped:
            self.scroll_to(y=self.scroll_y - newly_dropped, animate=False, immediate=True)
        self.refresh()


async def show_output(view: OutputView, client: Client, job: str) -> None:
    """Show the output of a job's command until it ends."""
    async for lines in client.output(job):
        for line in lines:
            _show(view, line)


def _show(view: OutputView, line: dict[str, Any]) -> None:
    if "text" in line:
        view.feed(line["stream"], line["text"])
    elif "dropped" in line:
        view.note_dropped(line["dropped"])
    elif "ended" in line:
        view.note(format_result(parse_ended(line["ended"])))
    elif "error" in line:
        view.note(clean(line["error"]))
