"""A table that fills its width, keeps the cursor on its job, and redraws only what changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text
from textual import events
from textual.widgets import DataTable, Static

_NARROWEST = 8


@dataclass(frozen=True)
class TableColumn:
    """A column: as wide as told, or with a share of what is left; perhaps on wide screens only."""

    key: str
    title: str
    width: int = 0
    share: int = 1
    from_width: int = 0


def cell(text: str, style: str = "") -> Text:
    """Return what stands in a cell: text that is nothing but text."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def tell(place: Static, text: str) -> None:
    """Show a text, and draw it only if it is another."""
    if str(place.content) != text:
        place.update(text)


class Table(DataTable[Text]):
    """Rows by the ids of their jobs."""

    def __init__(self, columns: Sequence[TableColumn], id: str) -> None:  # noqa: A002 - as Textual says
        super().__init__(id=id, cursor_type="row", cell_padding=1)
        self._wanted = columns
        self._shown: dict[str, Mapping[str, Text]] = {}
        self._widths: dict[str, int] = {}

    @property
    def job(self) -> str:
        """The job that the cursor is on; nothing if there is none."""
        keys = list(self._shown)
        return keys[self.cursor_row] if self.cursor_row < len(keys) else ""

    def put(self, rows: Mapping[str, Mapping[str, Text]]) -> None:
        """Show these rows in this order."""
        if list(rows) == list(self._shown) and self._widths:
            for job, cells in rows.items():
                self._change(job, cells)
            self._shown = dict(rows)
        else:
            job, top = self.job, self.scroll_y
            self._shown = dict(rows)
            self._fill(job)
            self.scroll_to(y=top, animate=False)

    def point_at(self, job: str) -> None:
        """Put the cursor on a job, if it is there."""
        if job in self._shown:
            self.move_cursor(row=list(self._shown).index(job), animate=False)

    def on_resize(self, _: events.Resize) -> None:
        """Give the columns the new width."""
        if self._layout() != self._widths:
            self._fill(self.job)

    def _change(self, job: str, cells: Mapping[str, Text]) -> None:
        for key in self._widths:
            if self._shown[job][key] != cells[key]:
                self.update_cell(job, key, cells[key])

    def _fill(self, job: str) -> None:
        self._widths = self._layout()
        with self.prevent(self.RowHighlighted):
            self.clear(columns=True)
            for column in self._wanted:
                if column.key in self._widths:
                    width = self._widths[column.key]
                    self.add_column(Text(column.title), width=width, key=column.key)
            for key, cells in self._shown.items():
                self.add_row(*(cells[name] for name in self._widths), key=key)
            self.point_at(job)

    def _layout(self) -> dict[str, int]:
        """Return the columns that there is room for, and how wide each is."""
        whole = self.size.width
        columns = [column for column in self._wanted if column.from_width <= whole]
        padding = 2 * self.cell_padding
        left = whole - sum(column.width + padding for column in columns)
        shares = sum(column.share for column in columns if not column.width) or 1
        return {
            column.key: column.width or max(_NARROWEST, left * column.share // shares)
            for column in columns
        }
