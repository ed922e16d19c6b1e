"""Print rollouts as text and as JSON."""

import json
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

from broker.cli.terminal import Cell, Column, print_table, printable
from broker.cli.time_formats import age, iso, local
from schemas.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from broker.rollouts.progress import RolloutProgress
    from broker.rollouts.state import RolloutState, WaveTally
    from schemas import Rollout

_SHOWN = 10  # names in one line
_LISTED = (
    Column("rollout"),
    Column("state"),
    Column("wave", rank=2),
    Column("sent to", rank=1),
    Column("failures", right=True),
    Column("name", least=12),
)
_WAVES = (
    Column("wave", right=True),
    Column("workstations", right=True),
    Column("begun at"),
    Column("counts", least=24),
)


class StatePrinter:
    """Print the state of a rollout, a line for each change."""

    def __init__(self, plan: "Rollout", *, as_json: bool) -> None:
        self._plan = plan
        self._as_json = as_json
        self._printed = ""

    def __call__(self, state: "RolloutState") -> None:
        """Print the state if it has changed."""
        text = (
            json.dumps(as_json(self._plan, state))
            if self._as_json
            else format_rollout_state(self._plan, state)
        )
        if text != self._printed:
            self._printed = text
            print(text if self._as_json else printable(text), flush=True)


def print_plan(plan: "Rollout", *, as_json: bool) -> None:
    """Print the id and the waves of a new rollout."""
    sizes = list(map(len, plan.waves))
    if as_json:
        print_json({"rollout": plan.id, "workstations": sum(sizes), "waves": sizes})
        return
    print(plan.id)
    waves = "one wave" if len(sizes) == 1 else f"{len(sizes)} waves: {', '.join(map(str, sizes))}"
    print(f"{counted(sum(sizes), 'workstation')} in {waves}", flush=True)


def print_json(fields: dict[str, Any]) -> None:
    """Print a line of JSON."""
    print(json.dumps(fields), flush=True)


def as_json(plan: "Rollout", state: "RolloutState") -> dict[str, Any]:
    """Return the state of a rollout as JSON."""
    return {
        "rollout": plan.id,
        "state": state.state,
        "reason": state.reason,
        "wave": state.wave,
        "waves": len(plan.waves),
        "until": iso(state.until),
        "workstations": sum(map(len, plan.waves)),
        "sent_to": state.sent_to,
        "failures": state.failures,
        "max_failures": state.limit,
        "counts": {str(name): count for name, count in sorted(state.counts.items()) if count},
    }


def format_rollout_state(plan: "Rollout", state: "RolloutState") -> str:
    """Return the state of a rollout in one line."""
    parts = [f"wave {state.wave} of {len(plan.waves)}" if state.wave else "nothing sent"]
    parts.append(_state(plan, state))
    if state.counts:
        parts.append(_counts(state.counts))
    return "; ".join(parts)


def _state(plan: "Rollout", state: "RolloutState") -> str:
    if state.state == "pausing" and state.until is not None:
        return f"pausing until {local(state.until)}"
    if state.state == "due" and state.send is not None:
        size = counted(len(plan.waves[state.send - 1]), "workstation")
        return f"sending wave {state.send} to {size}"
    if state.reason:
        between = ": " if state.state in {"stopped", "expired"} else " "
        return f"{state.state}{between}{state.reason}"
    return state.state


def hint(plan: "Rollout", state: "RolloutState") -> str:
    """Return how to continue a rollout that has stopped; empty if it has ended."""
    if state.cancel:
        return f"some jobs have not ended: pcm rollout abort {plan.id}"
    if state.state in {"finished", "aborted"}:
        return ""
    abort = f"or pcm rollout abort {plan.id}"
    if state.state == "expired":
        return f"no further wave can be sent: pcm rollout abort {plan.id}"
    if state.state == "stopped":
        return f"to continue: pcm rollout resume {plan.id} --max-failures N, {abort}"
    return f"to continue: pcm rollout resume {plan.id}, {abort}"


def print_list(rollouts: "Iterable[RolloutProgress]", *, as_json: bool) -> None:
    """Print a row for each rollout."""
    if as_json:
        print(json.dumps(list(map(_rollout_fields, rollouts)), indent=2))
        return
    rows = []
    for progress in rollouts:
        plan, state = progress.plan, progress.state
        total = sum(map(len, plan.waves))
        wave, sent_to = f"{state.wave}/{len(plan.waves)}", f"{state.sent_to}/{total}"
        rows.append((plan.id, state.state, wave, sent_to, str(state.failures), plan.job.title))
    if rows:
        print_table(_LISTED, rows)
    else:
        print("no rollouts")


def print_one(progress: "RolloutProgress", *, as_json: bool) -> None:
    """Print a rollout with its waves."""
    plan, state = progress.plan, progress.state
    if as_json:
        print_json(_rollout_fields(progress))
        return
    print(printable(f"{plan.id}  {plan.job.title}"))
    print(printable(f"by {plan.sender}; failures: {state.failures}, max failures: {state.limit}"))
    print(printable(format_rollout_state(plan, state)))
    rows, now = [], time.time()
    for number, names in enumerate(plan.waves, 1):
        tally = progress.tallies.get(number)
        begun_at = tally.begun_at if tally else None
        begun = None if begun_at is None else Cell(local(begun_at), age(begun_at, now))
        rows.append((number, len(names), begun, _counts(tally.counts) if tally else ""))
    print_table(_WAVES, rows)
    if state.is_active and not state.cancel:
        print(f"if no program runs it: pcm rollout resume {plan.id}")
    elif text := hint(plan, state):
        print(text)


def _rollout_fields(progress: "RolloutProgress") -> dict[str, Any]:
    plan = progress.plan
    waves = [
        {
            "job": plan.wave_id(number),
            "workstations": list(names),
            **_tally_fields(progress.tallies.get(number)),
        }
        for number, names in enumerate(plan.waves, 1)
    ]
    fields = {"name": plan.job.title, "sender": plan.sender, "plan": waves}
    return as_json(plan, progress.state) | fields


def _tally_fields(tally: "WaveTally | None") -> dict[str, Any]:
    if tally is None:
        return {"begun_at": None, "counts": {}}
    counts = {str(state): count for state, count in sorted(tally.counts.items()) if count}
    return {"begun_at": iso(tally.begun_at), "counts": counts}


def print_unbound(names: "Sequence[str]") -> None:
    """Print the workstations that are left out, since no queue is bound for them."""
    if names:
        print(f"pcm: left out: no queue is bound for {some(sorted(names))}", file=sys.stderr)


def some(names: "Sequence[str]") -> str:
    """Return the first names in one line."""
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in counts.most_common() if count
    )
