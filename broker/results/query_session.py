"""Open the history and format states, counts and rows; shared by the commands on results."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import CommandError
from broker.cli.session import history_engine
from broker.cli.targets import nearest_name
from broker.cli.time_formats import iso
from broker.history.history import query_history
from broker.history.queries.rows import FAILURES, RUNNING, STATES, WAITING, UnknownId

if TYPE_CHECKING:
    from broker.history.history import History
    from broker.history.queries.rows import JobRow, OutcomeRow

ROWS = 50  # workstations that are shown without --all
_TIMES = ("created_at", "offer_at", "mandatory_at", "expires_at", "cancelled_at")
_MAX_GAPS = 5


@contextmanager
def query_session() -> "Iterator[History]":
    """Open the up-to-date history; print its gaps on stderr.

    Raises:
        CommandError: the history cannot be read, or it does not have the job.
    """
    with history_engine() as engine, query_history(engine) as history:
        _print_gaps(history.jobs.gaps())
        try:
            yield history
        except UnknownId as error:
            raise CommandError(str(error)) from error


def _print_gaps(gaps: list[str]) -> None:
    for gap in gaps[-_MAX_GAPS:]:
        print(f"pcm: the history is incomplete: {gap}", file=sys.stderr)
    if len(gaps) > _MAX_GAPS:
        print(f"pcm: and {len(gaps) - _MAX_GAPS:,} older gaps", file=sys.stderr)


def unknown_workstation_hint(history: "History", workstation: str) -> str:
    """Return the known workstation nearest to an unknown one, as the end of a message."""
    known = history.fleet.all_names()
    return "" if workstation in known else nearest_name(workstation, known)


def add_state_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that selects by states."""
    parser.add_argument(
        "--state",
        metavar="STATE",
        action="append",
        type=_state_or_group,
        help=f"{what}: a state such as succeeded or timed_out, or a group of states: waiting (not"
        " started), running, failures or ended; repeat for more",
    )


def _state_or_group(word: str) -> tuple[str, ...]:
    """Parse a state or a group of states."""
    groups = {
        "waiting": WAITING,
        "running": RUNNING,
        "failures": FAILURES,
        "ended": tuple(state for state in STATES if state not in (*WAITING, *RUNNING)),
    }
    if word in groups:
        return groups[word]
    if word in STATES:
        return (word,)
    raise argparse.ArgumentTypeError(
        f"{word!r} is not a state: write one of {', '.join((*groups, *STATES))}"
    )


def selected_states(options: list[tuple[str, ...]] | None) -> list[str] | None:
    """Return the states that options select; None without such options."""
    return None if options is None else [state for group in options for state in group]


def state_text(
    state: str,
    *,
    restart_required: bool | None = False,
    already_present: bool | None = None,
) -> str:
    """Return a state for people, with what it says about the workstation.

    Args:
        state: the state.
        restart_required: the workstation must be restarted.
        already_present: no command ran: the package was there, or was not there to be uninstalled.
    """
    text = state.replace("_", " ") + (", restart required" if restart_required else "")
    if already_present is None:
        return text
    return text + (", was there" if already_present else ", was not there")


def outcome_state(outcome: "OutcomeRow") -> str:
    """Return the state of a job on a workstation, for people; see `state_text`."""
    return state_text(
        outcome.state,
        restart_required=outcome.restart_required,
        already_present=outcome.already_present,
    )


def counts_text(counts: Mapping[str, int], restart_required: int = 0) -> str:
    """Return the number of workstations in each state, in one line; ended states first."""
    not_ended = (*RUNNING, *WAITING)
    states = [*(state for state in STATES if state not in not_ended), *not_ended]
    parts = [f"{counts[state]:,} {state_text(state)}" for state in states if counts.get(state)]
    if parts and restart_required:  # successes are first
        parts[0] += f" ({restart_required:,} restart required)"
    return ", ".join(parts) or "no workstation yet"


def shares(counts: Sequence[int]) -> list[str]:
    """Return counts as percentages that add up to 100.0."""
    total = sum(counts)
    if not total:
        return ["0.0" for _ in counts]
    exact = [count * 1000 / total for count in counts]
    tenths = [int(share) for share in exact]
    by_remainder = sorted(range(len(counts)), key=lambda index: tenths[index] - exact[index])
    for index in by_remainder[: 1000 - sum(tenths)]:
        tenths[index] += 1
    return [f"{share / 10:.1f}" for share in tenths]


def ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return the states that occur, with their counts, in the order of display."""
    return [(state, counts[state]) for state in STATES if counts[state]]


def exit_text(exit_code: int | None, signal: int | None) -> str:
    """Return a command's exit code or signal, as the cell of a table."""
    if exit_code is not None:
        return str(exit_code)
    return "" if signal is None else f"signal {signal}"


def reason_text(outcome: "OutcomeRow") -> str:
    """Return the reason of a workstation's state, and the first line of its command's output."""
    reason = "" if outcome.reason == f"exit code {outcome.exit_code}" else outcome.reason
    if outcome.concluded and outcome.state == "expired":
        reason = "concluded by the history: no report of its end has come"
    return "; ".join(part for part in (reason, outcome.line) if part)


def job_fields(row: "JobRow") -> dict[str, Any]:
    """Return a job's JSON fields."""
    fields = vars(row) | {name: iso(getattr(row, name)) for name in _TIMES}
    return (
        {"job": fields.pop("id")}
        | fields
        | {
            "targets": row.targets.split(),
            "counts": dict(ordered(row.counts)),
            "total": row.counts.total(),
            "open": row.open,
            "failures": row.failures,
        }
    )


def outcome_fields(outcome: "OutcomeRow") -> dict[str, Any]:
    """Return the JSON fields of a job on a workstation."""
    return vars(outcome) | {"at": iso(outcome.at), "until": iso(outcome.until)}
