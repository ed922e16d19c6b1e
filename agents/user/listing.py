"""List the open and the ended jobs of a state directory's agents, as text and as JSON."""

import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from agents import platforms
from agents.claims.claim_file import decision
from agents.store import ledger
from agents.store.state_folder import StateError
from agents.store.transaction import JobRecord, LedgerMetadata
from broker.amqp.topology import AgentKind, agent_of_word, agent_word
from broker.cli.table import Cell, Column, lines
from broker.cli.time_formats import age, local
from schemas import Pause, State
from schemas.maintenance_windows import parse_windows
from schemas.policy import Host, InteractiveRules, Rules, ServiceRules, due_order
from schemas.times import NEVER

Row = dict[str, Any]
_PENDING = (
    Column("job"),
    Column("name", least=12),
    Column("context", rank=6),
    Column("requirement", rank=3),
    Column("agent", rank=5, least=7),
    Column("state"),
    Column("offer at", rank=4),
    Column("mandatory at", rank=1),
    Column("starts at", rank=1),
    Column("expires at", rank=2),
)
_HISTORY = (
    Column("job"),
    Column("name", least=12),
    Column("agent", rank=3, least=7),
    Column("state"),
    Column("exit code", rank=1, right=True),
    Column("at", rank=2),
    Column("reason", rank=1, least=16),
)


def pending(state_dir: Path) -> list[Row]:
    """Return the open jobs, a row for each agent that has one."""
    found = [
        (record, agent)
        for agent, record in _records(state_dir)
        if record.open and not _decided_elsewhere(state_dir, agent, record)
    ]
    metadata = _metadata(state_dir)
    return [
        {
            "job": record.job.id,
            "name": record.job.title,
            "context": str(record.job.context),
            "requirement": str(record.job.requirement),
            "agent": agent,
            "state": str(record.state),
            "offer_at": _time(record.offer_at),
            "mandatory_at": _time(record.mandatory_at),
            "expires_at": _time(record.expires_at),
            "starts_at": _time(_starts_at(agent, record, metadata[agent])),
            "postponed_until": _time(record.until),
            "paused": metadata[agent].paused,
            "sender": record.job.sender,
            "command": str(record.job.command),
            "run_as": record.job.command.run_as,
        }
        for record, agent in sorted(found, key=lambda pair: (due_order(pair[0]), pair[1]))
    ]


def pauses(state_dir: Path) -> dict[str, Pause]:
    """Return the pauses of the paused agents, by name."""
    return {
        agent: metadata.pause
        for agent, metadata in _metadata(state_dir).items()
        if metadata.pause and metadata.paused
    }


def history(state_dir: Path) -> list[Row]:
    """Return the jobs that ended here, the oldest first."""
    ended = [(record.final, record, agent) for agent, record in _records(state_dir) if record.final]
    return [
        {
            "job": record.job.id,
            "name": record.job.title,
            "agent": agent,
            "state": str(final.state),
            "at": _time(final.at.timestamp()),
            "exit_code": final.result.exit_code if final.result else None,
            "duration": final.result.duration.total_seconds() if final.result else None,
            "reason": final.reason,
            "run_as": record.job.command.run_as,
            "stdout": str(final.result.stdout) if final.result else "",
            "stderr": str(final.result.stderr) if final.result else "",
        }
        for final, record, agent in sorted(ended, key=lambda row: row[0].at)
    ]


def show_pauses(pauses: dict[str, Pause]) -> None:
    """Print a line for each paused agent."""
    for agent, pause in pauses.items():
        since = local(pause.created_at.timestamp())
        reason = f": {pause.reason}" if pause.reason else ""
        print(f"{agent} has been paused since {since} by {pause.sender}{reason}")


def show(what: str, rows: list[Row]) -> None:
    """Print rows as a table."""
    if not rows:
        print("nothing is pending" if what == "pending" else "nothing has ended here")
        return
    columns = _PENDING if what == "pending" else _HISTORY
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    named = [column.name.replace(" ", "_") for column in columns]
    cells = [[_cell(name, row[name]) for name in named] for row in rows]
    print("\n".join(lines(columns, cells, room)))


def _records(state_dir: Path) -> list[tuple[str, JobRecord]]:
    """Return the records of all readable ledgers, each with its agent's name."""
    return [
        (_agent(path), record)
        for path in _ledgers(state_dir)
        for record in ledger.read_ledger(path)
    ]


def _metadata(state_dir: Path) -> dict[str, LedgerMetadata]:
    """Return the metadata of all readable ledgers, by agent name."""
    return {_agent(path): ledger.read_metadata(path) for path in _ledgers(state_dir)}


def _agent(path: Path) -> str:
    """Return the name of the agent of a ledger."""
    word = path.parent.name
    return agent_of_word(word) or word


def _ledgers(state_dir: Path) -> list[Path]:
    """Return the ledgers that this user owns."""
    found: list[Path] = []
    hidden: list[Path] = []
    if not state_dir.is_dir():
        raise StateError(f"PCM_STATE_DIR: {state_dir}: no agent has worked here")
    for folder in sorted(state_dir.iterdir()):
        if folder.name == "claims" or not folder.is_dir():
            continue
        try:
            path = folder / "ledger.db"
            if folder.lstat().st_uid != os.geteuid():  # do not open other users' files
                hidden.append(folder)
            elif path.is_file():
                found.append(path)
        except PermissionError:
            hidden.append(folder)
    if hidden and not found:
        raise StateError(f"{hidden[0]}: is another user's")
    return found


def _starts_at(agent: str, record: JobRecord, metadata: LedgerMetadata) -> float | None:
    """Return when an agent starts a job by itself; None if it does not, or starts it now."""
    if metadata.paused or record.state is State.STARTED:
        return None
    now, host = (
        time.time(),
        Host(platforms.platform_names(), windows=parse_windows(metadata.windows)),
    )
    rules: Rules = (
        ServiceRules(host, metadata.takeover_grace)
        if agent == AgentKind.SERVICE
        else InteractiveRules(host, metadata.countdown)
    )
    start = rules.start(record, now)
    return start if start > now else None


def _decided_elsewhere(state_dir: Path, agent: str, record: JobRecord) -> bool:
    """Whether another agent of the workstation has decided the job; this one will notice it."""
    decided = decision(state_dir, record.job.id)
    return decided is not None and agent_word(decided.agent) != agent_word(agent)


def _time(seconds: float | None) -> str | None:
    if seconds is None or seconds == NEVER:
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):  # not a time: the record is damaged
        return None


def _cell(column: str, value: Any) -> str | Cell:
    if value is None:
        return ""
    if column.endswith("at"):
        at = datetime.fromisoformat(value).timestamp()
        return Cell(local(at), age(at, time.time()))
    return str(value)
