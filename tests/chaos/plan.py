"""The plan of a chaos run: the jobs, users' actions, poison messages and faults, with their times.

All of it is drawn from one seed before anything starts, so the same seed makes the same plan;
only how the machine keeps up with it differs.
"""

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

GROUP = "lab"
USERS = ("ada", "bob")
_MARK = """
# TMPDIR is .../seats/WORKSTATION/AGENT: the command gets little else of its agent's environment.
agent="${TMPDIR##*/}" seat="${TMPDIR%/*}"
file="${seat%/*/*}/files/${seat##*/}.$PCM_JOB_ID"
read -r token </proc/sys/kernel/random/uuid
mark() { printf '%s\\n' "$1 $token $agent $(date +%s.%N) $2" >>"$file"; sync "$file"; }
mark start
"""
_SHAPES = {
    "quick": (8, ":"),
    "sleeps": (6, "sleep {seconds:.1f}"),
    "fails": (2, ":"),
    "writes much": (1, "head -c 300000 /dev/zero | tr '\\0' x"),
    "leaves a child": (2, "sleep 300 & sleep {seconds:.1f}"),
    "is stubborn": (1, "trap '' TERM; sleep {seconds:.1f}"),
    "too long": (1, "sleep 30"),
    "missing program": (1, ""),
}
_AGENT_FAULTS = {"kill": 5, "terminate": 3, "terminate twice": 2, "freeze": 3, "freeze, kill": 1}
_BROKER_FAULTS = {"kill broker": 2, "freeze broker": 1, "close connections": 2}
_GIVEN_BROKER_FAULTS = {"stop app": 1, "close connections": 2}
_FIRST_AGENT_FAULT = 2.0
# RabbitMQ 3.10 may lose a quorum queue or stream that was declared a moment before it is killed.
_FIRST_BROKER_FAULT = 4.0


@dataclass(frozen=True)
class Seat:
    """An agent's place: its workstation's number and its user; no user: the service."""

    workstation: int
    user: str = ""
    accepts: bool = False
    cut: bool = False

    @property
    def agent(self) -> str:
        """The agent's name on its workstation."""
        return f"interactive-{self.user}" if self.user else "service"


@dataclass(frozen=True)
class Wish:
    """A user's action on a job, some seconds after it was sent."""

    seat: Seat
    after: float
    verb: str
    postponed_by: float


@dataclass(frozen=True)
class Order:
    """A job to be sent; its times count from when it is."""

    at: float
    number: int
    shape: str
    command: dict[str, Any]
    scope: str
    workstations: tuple[int, ...]
    times: dict[str, float]
    again_after: float | None
    cancelled_after: float | None
    wishes: tuple[Wish, ...]


@dataclass(frozen=True)
class Dose:
    """An unreadable message to one workstation."""

    at: float
    number: int
    kind: str
    context: str
    workstation: int


@dataclass(frozen=True)
class Fault:
    """A fault of an agent; without a seat, of the broker."""

    at: float
    kind: str
    seat: Seat | None
    seconds: float


@dataclass
class Plan:
    """The plan of a run."""

    seats: list[Seat] = field(default_factory=list)
    group: tuple[int, ...] = ()
    orders: list[Order] = field(default_factory=list)
    doses: list[Dose] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def draw(seed: int, seconds: float, workstations: int, jobs: int, *, given: bool) -> Plan:
    """Draw a plan; `given`: the broker is not ours to kill."""
    drawn = random.Random(seed)
    plan = Plan(group=tuple(drawn.sample(range(workstations), (workstations + 1) // 2)))
    for number in range(workstations):
        plan.seats.append(Seat(number, cut=drawn.random() < 0.3))
        plan.seats += [
            Seat(number, user, accepts=drawn.random() < 0.3, cut=drawn.random() < 0.3)
            for user in USERS[: drawn.choice([1, 2, 2])]
        ]
    for number in range(jobs):
        plan.orders.append(_order(drawn, plan, number, drawn.uniform(0, seconds), workstations))
    for number in range(max(3, jobs // 15)):
        kind = drawn.choice(["garbage", "wrong version", "wrong key"])
        context = drawn.choice(["background", "foreground"])
        at = drawn.uniform(0, seconds)
        plan.doses.append(Dose(at, number, kind, context, drawn.randrange(workstations)))
    at = _FIRST_AGENT_FAULT
    while (at := at + drawn.expovariate(0.5)) < seconds:
        longest = 20 if drawn.random() < 0.05 and seconds > 60 else 4
        pause = drawn.uniform(0.1, longest)
        kind = _pick(drawn, _AGENT_FAULTS)
        # Half of them at any moment, half of them when there is something to spoil.
        seat, moment = drawn.choice(plan.seats), at
        if drawn.random() < 0.5:
            seat, moment = _worst(drawn, plan)
        plan.faults.append(Fault(moment, kind, seat, pause))
    kinds = _GIVEN_BROKER_FAULTS if given else _BROKER_FAULTS
    at = _FIRST_BROKER_FAULT
    while (at := at + drawn.uniform(2, 25)) < seconds:
        plan.faults.append(Fault(at, _pick(drawn, kinds), None, drawn.uniform(0.1, 5)))
    return plan


def _worst(drawn: random.Random, plan: Plan) -> tuple[Seat, float]:
    """Return an agent, and a moment at which it has just got a job, or just has to start one."""
    order = drawn.choice(plan.orders)
    number = drawn.choice(order.workstations)
    seats = [
        seat
        for seat in plan.seats
        if seat.workstation == number and not (seat.user and order.command["background"])
    ]
    due = drawn.choice([0.0, *order.times.values()])
    return drawn.choice(seats), max(_FIRST_AGENT_FAULT, order.at + due + drawn.uniform(0, 0.1))


def _pick(drawn: random.Random, weights: dict[str, int]) -> str:
    return drawn.choices(list(weights), list(weights.values()))[0]


def _order(drawn: random.Random, plan: Plan, number: int, at: float, workstations: int) -> Order:
    background, mandatory = drawn.random() < 0.45, drawn.random() < 0.5
    scope = drawn.choices(["one", "several", "group", "all"], [5, 2, 1, 1])[0]
    reached = _reached(drawn, plan, scope, workstations)
    shape = _pick(drawn, {name: weight for name, (weight, _) in _SHAPES.items()})
    command = _command(drawn, shape)
    command["background"] = background
    if mandatory and not background:
        command["user_input_required"] = drawn.random() < 0.1
    return Order(
        at=at,
        number=number,
        shape=shape,
        command=command,
        scope=scope,
        workstations=reached,
        times=_times(drawn, background=background, mandatory=mandatory),
        again_after=drawn.choice([0.0, drawn.uniform(0, 5)]) if drawn.random() < 0.15 else None,
        cancelled_after=drawn.choice([0.0, drawn.uniform(0, 4)]) if drawn.random() < 0.12 else None,
        wishes=() if background else tuple(_wishes(drawn, plan, reached)),
    )


def _reached(drawn: random.Random, plan: Plan, scope: str, workstations: int) -> tuple[int, ...]:
    if scope == "group":
        return plan.group
    everywhere = range(workstations)
    count = {"one": 1, "several": 2, "all": workstations}[scope]
    return tuple(drawn.sample(everywhere, min(count, workstations)))


def _times(drawn: random.Random, *, background: bool, mandatory: bool) -> dict[str, float]:
    times: dict[str, float] = {}
    if mandatory:
        times["mandatory_at"] = drawn.uniform(0.5, 4 if background else 8)
    elif drawn.random() < 0.2:
        times["offer_at"] = drawn.uniform(0.5, 4)
    # No user has to accept an optional offer: without an expiry it would never end.
    if drawn.random() < 0.25 or not (background or mandatory):
        least = 0.3 if background or mandatory else 3
        times["expires_at"] = max(times.values(), default=0) + drawn.uniform(least, 10)
    return times


def _command(drawn: random.Random, shape: str) -> dict[str, Any]:
    """Return a command that writes down when it starts and ends, and what it does between."""
    if shape == "missing program":
        return {"argv": ("/no/such/program",)}
    code = drawn.choice([1, 2, 77]) if shape == "fails" else 0
    body = _SHAPES[shape][1].format(seconds=drawn.uniform(0.2, 3))
    script = f"{_MARK}{body}\nmark end {code}\nexit {code}"
    limit = timedelta(seconds=2 if shape == "too long" else 60)
    return {"argv": (script,), "shell": True, "timeout": limit}


def _wishes(drawn: random.Random, plan: Plan, workstations: tuple[int, ...]) -> list[Wish]:
    """Return the users' actions; two users of one workstation often act at the same moment."""
    wishes = []
    for number in workstations:
        moment = drawn.uniform(0.2, 2)
        for seat in plan.seats:
            verb = drawn.choices(["run", "decline", "postpone", ""], [5, 2, 2, 2])[0]
            after = moment if drawn.random() < 0.5 else drawn.uniform(0.2, 2)
            by = drawn.uniform(1, 4)
            if seat.workstation == number and seat.user and not seat.accepts and verb:
                wishes.append(Wish(seat, after, verb, by))
    return wishes
