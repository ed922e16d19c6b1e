"""What the agents of a state directory hold and did, for people and as JSON."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents import ledger
from agents.claims import decision
from agents.schedule import NEVER, order
from agents.state import StateError
from agents.tables import Entry

Row = dict[str, Any]


def pending(state_dir: Path) -> list[Row]:
    """Return the jobs that are not ended here, a row for each agent that holds one."""
    found = [
        (entry, agent)
        for agent, entry in _entries(state_dir)
        if entry.open and not _elsewhere(state_dir, agent, entry)
    ]
    return [
        {
            "job": entry.job.id,
            "name": entry.job.title,
            "kind": f"{entry.job.context} {entry.job.requirement}",
            "agent": agent,
            "state": str(entry.state),
            "offer_at": _time(entry.offer_at),
            "mandatory_at": _time(entry.mandatory_at),
            "expires_at": _time(entry.expires_at),
            "postponed_until": _time(entry.until),
            "sender": entry.job.sender,
            "command": str(entry.job.command),
        }
        for entry, agent in sorted(found, key=lambda pair: (order(pair[0]), pair[1]))
    ]


def history(state_dir: Path) -> list[Row]:
    """Return the jobs that ended here, the newest last."""
    ended = [(entry.final, entry, agent) for agent, entry in _entries(state_dir) if entry.final]
    return [
        {
            "job": entry.job.id,
            "name": entry.job.title,
            "agent": agent,
            "state": str(final.state),
            "at": _time(final.at.timestamp()),
            "exit_code": final.result.exit_code if final.result else None,
            "duration": final.result.duration.total_seconds() if final.result else None,
            "reason": final.reason,
            "stdout": str(final.result.stdout) if final.result else "",
            "stderr": str(final.result.stderr) if final.result else "",
        }
        for final, entry, agent in sorted(ended, key=lambda row: row[0].at)
    ]


def show(what: str, rows: list[Row]) -> None:
    """Print rows as a table for people."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        print("nothing is pending" if what == "pending" else "nothing has ended here")
        return
    columns = (
        ("job", "name", "kind", "agent", "state", "offer_at", "mandatory_at", "expires_at")
        if what == "pending"
        else ("job", "name", "agent", "state", "exit_code", "at", "reason")
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(column, row[column])) for column in columns))
    console = Console()
    if not console.is_terminal:
        console.width = 220
    console.print(table)


def _entries(state_dir: Path) -> list[tuple[str, Entry]]:
    """Return the entries of all ledgers here that may be read, each with its agent's name."""
    found: list[tuple[str, Entry]] = []
    hidden: list[Path] = []
    if not state_dir.is_dir():
        raise StateError(f"PCM_STATE_DIR: {state_dir}: no agent has worked here")
    for folder in sorted(state_dir.iterdir()):
        if folder.name == "claims":
            continue
        try:
            path = folder / "ledger.db"
            if path.is_file():
                found += [(folder.name, entry) for entry in ledger.read(path)]
        except PermissionError:
            hidden.append(folder)
    if hidden and not found:
        raise StateError(f"{hidden[0]}: is another user's")
    return found


def _elsewhere(state_dir: Path, agent: str, entry: Entry) -> bool:
    """Whether another agent of the workstation has the job, as this one will see in time."""
    decided = decision(state_dir, entry.job.id)
    return decided is not None and decided.agent != agent


def _time(seconds: float | None) -> str | None:
    if seconds is None or seconds == NEVER:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # no time at all: the record is damaged
        return None


def _cell(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("at"):
        return f"{datetime.fromisoformat(value).astimezone():%Y-%m-%d %H:%M:%S}"
    return str(value)
