"""A table that fills its width, keeps the cursor on its job, and redraws only changed cells."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text
from textual import events
from textual.widgets import DataTable, Static

_MIN_WIDTH = 8


@dataclass(frozen=True)
class TableColumn:
    """A column.

    Attributes:
        key: the key of its cells.
        title: its header.
        width: its width; 0 for a share of the remaining width.
        share: the weight of that share.
        from_width: the least width of the table with which the column is shown.
    """

    key: str
    title: str
    width: int = 0
    share: int = 1
    from_width: int = 0


def cell(text: str, style: str = "") -> Text:
    """Return the content of a cell, without markup."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def set_text(widget: Static, text: str) -> None:
    """Set the text of a widget; redraw it only if the text changed."""
    if str(widget.content) != text:
        widget.update(text)


class Table(DataTable[Text]):
    """A table with a row for each job."""

    def __init__(self, columns: Sequence[TableColumn], id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id, cursor_type="row", cell_padding=1)
        self._columns = columns
        self._rows: dict[str, Mapping[str, Text]] = {}
        self._widths: dict[str, int] = {}

    @property
    def job(self) -> str:
        """The job under the cursor; "" if the table is empty."""
        keys = list(self._rows)
        return keys[self.cursor_row] if self.cursor_row < len(keys) else ""

    def put(self, rows: Mapping[str, Mapping[str, Text]]) -> None:
        """Show these rows in this order."""
        if list(rows) == list(self._rows) and self._widths:
            for job, cells in rows.items():
                self._change(job, cells)
            self._rows = dict(rows)
        else:
            job, top = self.job, self.scroll_y
            self._rows = dict(rows)
            self._fill(job)
            self.scroll_to(y=top, animate=False)

    def point_at(self, job: str) -> None:
        """Move the cursor to a job, if the table has it."""
        if job in self._rows:
            self.move_cursor(row=list(self._rows).index(job), animate=False)

    def on_resize(self, _: events.Resize) -> None:
        """Fit the columns to the new width."""
        if self._layout() != self._widths:
            self._fill(self.job)

    def _change(self, job: str, cells: Mapping[str, Text]) -> None:
        for key in self._widths:
            if self._rows[job][key] != cells[key]:
                self.update_cell(job, key, cells[key])

    def _fill(self, job: str) -> None:
        self._widths = self._layout()
        with self.prevent(self.RowHighlighted):
            self.clear(columns=True)
            for column in self._columns:
                if column.key in self._widths:
                    width = self._widths[column.key]
                    self.add_column(Text(column.title), width=width, key=column.key)
            for key, cells in self._rows.items():
                self.add_row(*(cells[name] for name in self._widths), key=key)
            self.point_at(job)

    def _layout(self) -> dict[str, int]:
        """Return the visible columns and their widths."""
        width = self.size.width
        columns = [column for column in self._columns if column.from_width <= width]
        padding = 2 * self.cell_padding
        remaining = width - sum(column.width + padding for column in columns)
        shares = sum(column.share for column in columns if not column.width) or 1
        return {
            column.key: column.width or max(_MIN_WIDTH, remaining * column.share // shares)
            for column in columns
        }
