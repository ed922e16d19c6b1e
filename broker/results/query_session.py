"""What the commands that tell what came of jobs share."""

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from broker.cli.command_line import Wrong
from broker.cli.session import history
from broker.cli.time_formats import iso

if TYPE_CHECKING:
    from broker.history.history import History
    from broker.history.queries import JobRow, Pair

ROWS = 50  # workstations that are shown unless all are asked for
_TIMES = ("created_at", "offer_at", "mandatory_at", "expires_at", "cancelled_at")
_GAPS = 5


@contextmanager
def looking() -> "Iterator[History]":
    """Open the history, up to date; what is missing from it is told on stderr.

    Raises:
        Wrong: it cannot be read, or there is no such job as was asked for.
    """
    from broker.history.history import asked
    from broker.history.queries import UnknownId

    with history() as engine, asked(engine) as found:
        _tell_gaps(found.accounts.gaps())
        try:
            yield found
        except UnknownId as error:
            raise Wrong(str(error)) from error


def _tell_gaps(gaps: list[str]) -> None:
    for gap in gaps[-_GAPS:]:
        print(f"pcm: the history is not whole: {gap}", file=sys.stderr)
    if len(gaps) > _GAPS:
        print(f"pcm: and {len(gaps) - _GAPS:,} older gaps", file=sys.stderr)


def add_states(parser: argparse.ArgumentParser, what: str) -> None:
    """Add the option that selects by states."""
    parser.add_argument(
        "--state",
        metavar="STATE",
        action="append",
        type=states,
        help=f"{what}: a state such as succeeded or timed_out, or waiting, running, failures or"
        " ended; again for more",
    )


def states(word: str) -> tuple[str, ...]:
    """Read a state, or what many are called together, that is an option."""
    from broker.history.queries import FAILURES, RUNNING, STATES, WAITING

    together = {
        "waiting": WAITING,
        "running": RUNNING,
        "failures": FAILURES,
        "ended": tuple(state for state in STATES if state not in (*WAITING, *RUNNING)),
    }
    if word in together:
        return together[word]
    if word in STATES:
        return (word,)
    raise argparse.ArgumentTypeError(
        f"{word!r} is no state: write one of {', '.join((*together, *STATES))}"
    )


def chosen(given: list[tuple[str, ...]] | None) -> list[str] | None:
    """Return the states that options select; None where there is no such option."""
    return None if given is None else [state for group in given for state in group]


def words(state: str) -> str:
    """Return a state as people read it."""
    return state.replace("_", " ")


def state_words(state: str, *, restart_required: bool | None) -> str:
    """Return a state as people read it, and whether the workstation is to be restarted."""
    return words(state) + (", restart needed" if restart_required else "")


def tally(row: "JobRow") -> str:
    """Return how many workstations are where, in a line; what waits is counted together."""
    from broker.history.queries import RUNNING, STATES, WAITING

    counts = row.counts
    apart = [state for state in STATES if state not in (*WAITING, *RUNNING)]
    parts = [(words(state), counts[state]) for state in apart]
    parts.append(("running", sum(counts[state] for state in RUNNING)))
    parts.append(("waiting", sum(counts[state] for state in WAITING)))
    told = [f"{count:,} {word}" for word, count in parts if count]
    if told and row.restart_required:  # successes stand first
        told[0] += f" ({row.restart_required:,} to be restarted)"
    return ", ".join(told) or "nobody yet"


def shares(counts: Sequence[int]) -> list[str]:
    """Return counts as percentages that add up to 100.0."""
    total = sum(counts)
    if not total:
        return ["0.0" for _ in counts]
    exact = [count * 1000 / total for count in counts]
    tenths = [int(share) for share in exact]
    by_rest = sorted(range(len(counts)), key=lambda place: tenths[place] - exact[place])
    for place in by_rest[: 1000 - sum(tenths)]:
        tenths[place] += 1
    return [f"{share / 10:.1f}" for share in tenths]


def ordered(counts: Counter[str]) -> list[tuple[str, int]]:
    """Return the states that there are, with their counts, in the order in which they are told."""
    from broker.history.queries import STATES

    return [(state, counts[state]) for state in STATES if counts[state]]


def exit_text(exit_code: int | None, signal: int | None) -> str:
    """Return how a command ended, as the cell of a table."""
    if exit_code is not None:
        return str(exit_code)
    return "" if signal is None else f"signal {signal}"


def told(pair: "Pair") -> str:
    """Return what is told of a workstation's end: the reason, and the first line of error."""
    reason = "" if pair.reason == f"exit code {pair.exit_code}" else pair.reason
    return "; ".join(part for part in (reason, pair.line) if part)


def job_fields(row: "JobRow") -> dict[str, Any]:
    """Return a job as JSON has it."""
    fields = vars(row) | {name: iso(getattr(row, name)) for name in _TIMES}
    return fields | {
        "targets": row.targets.split(),
        "counts": dict(ordered(row.counts)),
        "total": row.counts.total(),
        "open": row.open,
        "failures": row.failures,
    }


def pair_fields(pair: "Pair") -> dict[str, Any]:
    """Return what came of a job on a workstation as JSON has it."""
    return vars(pair) | {"at": iso(pair.at), "until": iso(pair.until)}


def few(names: Collection[str], most: int = 10) -> str:
    """Return names in a line, and how many are left out."""
    shown = ", ".join(list(names)[:most])
    more = len(names) - most
    return shown if more <= 0 else f"{shown} and {more:,} more"
