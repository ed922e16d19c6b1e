"""What a command writes, as it comes: bounded, drawn a few times a second however fast it is."""

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
from agents.window.model import result
from agents.window.snapshot import ended
from agents.window.texts import clean

MOST_LINES = 20_000
_SPARE = 2_000
_LONGEST = 4_096
_PAUSE = 0.1
_ORDERS = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, links and the like
    r"|\x1b[ -/]*[0-~]?"
)
_SIGNS = {"stdout": "  ", "stderr": "! ", "": "~ "}


@dataclass
class OutputLine:
    """A line of one stream; it may still grow."""

    stream: str
    text: str = ""

    def add(self, text: str) -> None:
        """Append what came; of a line without an end only the beginning is kept."""
        if len(self.text) < _LONGEST:
            self.text += text[:_LONGEST]

    def shown(self) -> str:
        """Return it as it is shown: after its last return, without orders to a terminal."""
        text = self.text.rstrip("\r").rpartition("\r")[2][:_LONGEST]
        return clean(_ORDERS.sub("", text).expandtabs())


class Lines:
    """The last lines of both streams, in the order in which they came."""

    def __init__(self, most: int = MOST_LINES) -> None:
        self._most = most
        self._lines: list[OutputLine] = []
        self._growing: dict[str, OutputLine] = {}
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> OutputLine:
        return self._lines[index]

    def add(self, stream: str, text: str) -> None:
        """Take in what a stream wrote: parts of lines, or many."""
        *whole, rest = text.split("\n")
        for line in whole:
            self._grow(stream, line)
            self._growing.pop(stream, None)
        if rest:
            self._grow(stream, rest)
        if (over := len(self._lines) - self._most) > _SPARE or 0 < over == len(self._lines):
            del self._lines[:over]
            self.dropped += over

    def _grow(self, stream: str, text: str) -> None:
        line = self._growing.get(stream)
        if line is None:
            line = self._growing[stream] = OutputLine(stream)
            self._lines.append(line)
        line.add(text)


class OutputView(ScrollView, can_focus=True):
    """Shows what a command writes; stays at its end while the user is there."""

    COMPONENT_CLASSES = {"output--error", "output--note"}  # noqa: RUF012 - as Textual says
    empty: var[str] = var("")
    """What is said while there is nothing."""

    def __init__(self, **options: str) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.lines = Lines()
        self._waits = False
        self._cut = 0
        self._at_end = True

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Stay at the end from when the user is there, until they go elsewhere."""
        super().watch_scroll_y(old_value, new_value)
        if self.size.height:
            self._at_end = self.is_vertical_scroll_end

    def on_resize(self) -> None:
        """Stay at the end."""
        self._soon()

    def start(self, empty: str) -> None:
        """Show nothing yet."""
        self.lines = Lines()
        self.empty = empty
        self._cut = 0
        self._at_end = True
        self._draw()

    def feed(self, stream: str, text: str) -> None:
        """Take in what was written; it is drawn soon."""
        self.lines.add(stream, text)
        self._soon()

    def note(self, text: str) -> None:
        """Add a line that is not the command's."""
        self.lines.add("", f"{text}\n")
        self._soon()

    def cut(self, size: int) -> None:
        """Say that so many bytes were left out."""
        self.note(f"{size} bytes were left out")

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
        text = _SIGNS.get(line.stream, "  ") + line.shown()
        strip = Strip([Segment(text, style)], cell_len(text))
        return strip.crop_extend(scroll_x, scroll_x + width, plain)

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(name)

    def _soon(self) -> None:
        if not self._waits:
            self._waits = True
            self.set_timer(_PAUSE, self._draw)

    def _draw(self) -> None:
        self._waits = False
        newly_cut = self.lines.dropped - self._cut
        self._cut = self.lines.dropped
        height = self.scrollable_content_region.height
        last = max(0, len(self.lines) - max(height, 1) * 4)
        widest = max((len(self.lines[n].text) for n in range(last, len(self.lines))), default=0)
        width = max(self.virtual_size.width, min(widest + 2, _LONGEST)) if self.lines else 0
        self.virtual_size = Size(width, len(self.lines))
        if self._at_end:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
        elif newly_cut:
            self.scroll_to(y=self.scroll_y - newly_cut, animate=False, immediate=True)
        self.refresh()


async def follow(view: OutputView, client: Client, job: str) -> None:
    """Show what a job's command writes, from its beginning to its end."""
    async for told in client.output(job):
        for line in told:
            _show(view, line)


def _show(view: OutputView, told: dict[str, Any]) -> None:
    if "text" in told:
        view.feed(told["stream"], told["text"])
    elif "dropped" in told:
        view.cut(told["dropped"])
    elif "ended" in told:
        view.note(result(ended(told["ended"])))
    elif "declined" in told:
        view.note(clean(told["declined"]))
