"""How a rollout stands, in words and as JSON."""

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
    Column("id"),
    Column("state"),
    Column("wave", rank=2),
    Column("sent to", rank=1),
    Column("failures", right=True),
    Column("name", least=12),
)
_WAVES = (
    Column("wave", right=True),
    Column("workstations", right=True),
    Column("begun"),
    Column("states", least=24),
)


class Teller:
    """Prints how a rollout stands, a line whenever that changes."""

    def __init__(self, plan: "Rollout", *, as_json: bool) -> None:
        self._plan = plan
        self._as_json = as_json
        self._told = ""

    def __call__(self, found: "RolloutState") -> None:
        """Print it, if it is news."""
        text = json.dumps(as_json(self._plan, found)) if self._as_json else line(self._plan, found)
        if text != self._told:
            self._told = text
            print(text if self._as_json else printable(text), flush=True)


def tell_plan(plan: "Rollout", *, as_json: bool) -> None:
    """Print what was begun."""
    sizes = list(map(len, plan.waves))
    if as_json:
        tell_json({"rollout": plan.id, "workstations": sum(sizes), "waves": sizes})
        return
    print(plan.id)
    waves = "one wave" if len(sizes) == 1 else f"{len(sizes)} waves: {', '.join(map(str, sizes))}"
    print(f"{counted(sum(sizes), 'workstation')} in {waves}", flush=True)


def tell_json(found: dict[str, Any]) -> None:
    """Print a line of JSON."""
    print(json.dumps(found), flush=True)


def as_json(plan: "Rollout", found: "RolloutState") -> dict[str, Any]:
    """Return how a rollout stands, as it goes into JSON."""
    return {
        "rollout": plan.id,
        "state": found.state,
        "reason": found.reason,
        "wave": found.wave,
        "waves": len(plan.waves),
        "until": iso(found.until),
        "workstations": sum(map(len, plan.waves)),
        "sent_to": found.sent_to,
        "failures": found.failures,
        "max_failures": found.limit,
        "states": {str(state): count for state, count in sorted(found.counts.items()) if count},
    }


def line(plan: "Rollout", found: "RolloutState") -> str:
    """Return how a rollout stands, in one line."""
    parts = [f"wave {found.wave} of {len(plan.waves)}" if found.wave else "nothing sent"]
    parts.append(_state(plan, found))
    if found.counts:
        parts.append(_counts(found.counts))
    return "; ".join(parts)


def _state(plan: "Rollout", found: "RolloutState") -> str:
    if found.state == "pausing" and found.until is not None:
        return f"pausing until {local(found.until)}"
    if found.state == "due" and found.send is not None:
        size = counted(len(plan.waves[found.send - 1]), "workstation")
        return f"sending wave {found.send} to {size}"
    if found.reason:
        between = ": " if found.state in {"stopped", "expired"} else " "
        return f"{found.state}{between}{found.reason}"
    return found.state


def hint(plan: "Rollout", found: "RolloutState") -> str:
    """Return how to go on with a rollout that does not by itself; empty if it has ended."""
    if found.cancel:
        return f"it has not ended everywhere: pcm rollout abort {plan.id}"
    if found.state in {"finished", "aborted"}:
        return ""
    abort = f"or pcm rollout abort {plan.id}"
    if found.state == "expired":
        return f"no further wave can be sent: pcm rollout abort {plan.id}"
    if found.state == "stopped":
        return f"to go on: pcm rollout resume {plan.id} --max-failures N, {abort}"
    return f"to go on: pcm rollout resume {plan.id}, {abort}"


def tell_all(courses: "Iterable[RolloutProgress]", *, as_json: bool) -> None:
    """Print a row a rollout."""
    if as_json:
        print(json.dumps(list(map(_course, courses)), indent=2))
        return
    rows = []
    for course in courses:
        plan, found = course.plan, course.standing
        total = sum(map(len, plan.waves))
        wave, sent_to = f"{found.wave}/{len(plan.waves)}", f"{found.sent_to}/{total}"
        rows.append((plan.id, found.state, wave, sent_to, str(found.failures), plan.job.title))
    if rows:
        print_table(_LISTED, rows)
    else:
        print("no rollouts")


def tell_one(course: "RolloutProgress", *, as_json: bool) -> None:
    """Print all of a rollout."""
    plan, found = course.plan, course.standing
    if as_json:
        tell_json(_course(course))
        return
    print(printable(f"{plan.id}  {plan.job.title}"))
    print(printable(f"by {plan.sender}; failures: {found.failures}, borne: {found.limit}"))
    print(printable(line(plan, found)))
    rows, now = [], time.time()
    for number, names in enumerate(plan.waves, 1):
        tally = course.tallies.get(number)
        at = tally.begun_at if tally else None
        begun = None if at is None else Cell(local(at), age(at, now))
        rows.append((number, len(names), begun, _counts(tally.counts) if tally else ""))
    print_table(_WAVES, rows)
    if found.goes_on and not found.cancel:
        print(f"if nobody drives it any more: pcm rollout resume {plan.id}")
    elif text := hint(plan, found):
        print(text)


def _course(course: "RolloutProgress") -> dict[str, Any]:
    plan = course.plan
    waves = [
        {
            "job": plan.wave_id(number),
            "workstations": list(names),
            **_tally(course.tallies.get(number)),
        }
        for number, names in enumerate(plan.waves, 1)
    ]
    more = {"name": plan.job.title, "sender": plan.sender, "plan": waves}
    return as_json(plan, course.standing) | more


def _tally(tally: "WaveTally | None") -> dict[str, Any]:
    if tally is None:
        return {"begun_at": None, "states": {}}
    states = {str(state): count for state, count in sorted(tally.counts.items()) if count}
    return {"begun_at": iso(tally.begun_at), "states": states}


def print_unbound(names: "Sequence[str]") -> None:
    """Print the workstations that are left out, since no queue is bound for them."""
    if names:
        print(f"pcm: left out: no queue is bound for {some(sorted(names))}", file=sys.stderr)


def some(names: "Sequence[str]") -> str:
    """Return names in one line, not all where they are many."""
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def _counts(counts: Counter[str]) -> str:
    return ", ".join(
        f"{count} {state.replace('_', ' ')}" for state, count in counts.most_common() if count
    )
