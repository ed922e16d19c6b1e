"""Who is bound to what: exchanges, queues, routing keys and bindings, from one table.

Everything else that speaks of the topology derives from `ROUTES`: the agents' bindings, the
permissions, `pcm topology show`, the tests.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Literal, NamedTuple

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from pamqp.common import FieldValue

from broker.amqp.connection import CALL_LIMIT, translated
from broker.amqp.timeouts import timeout
from schemas import Context, Job, Requirement, State, Target, everyone, group, workstation

JOBS = "pcm.jobs"
REPORTS = "pcm.reports"
DEAD = "pcm.dead"


class AgentKind(StrEnum):
    """The two agents of a workstation."""

    SERVICE = "service"
    INTERACTIVE = "interactive"


@dataclass(frozen=True)
class Route:
    """A kind of job, and which agents its messages reach."""

    context: Context
    requirement: Requirement
    bound: frozenset[AgentKind]

    @property
    def words(self) -> str:
        """The first two words of the routing key."""
        return f"{self.context}.{self.requirement}"


_SERVICE_ONLY = frozenset({AgentKind.SERVICE})
_BOTH = frozenset(AgentKind)

ROUTES = (
    Route(Context.BACKGROUND, Requirement.MANDATORY, _SERVICE_ONLY),
    Route(Context.BACKGROUND, Requirement.OPTIONAL, _SERVICE_ONLY),
    Route(Context.FOREGROUND, Requirement.MANDATORY, _BOTH),
    Route(Context.FOREGROUND, Requirement.OPTIONAL, _BOTH),
)
"""The rule: no interactive agent is bound to a background key."""

# What the stream keeps: what agents report and say of themselves, all that administrators asked,
# and the marks by which a reader knows that it has read all that was there when it came.
STREAM_KEYS = (
    *(f"{state}.*.*" for state in (*State, "check_in")),
    *(
        f"{kind}.*"
        for kind in (
            "job",
            "cancellation",
            "departure",
            "rollout",
            "rollout_order",
            "wave_sent",
            "wave_ended",
            "schedule",
            "schedule_removal",
            "forgery",
            "mark",
        )
    ),
)
DEAD_KEY = "dead.*.*"


def routing_key(job: Job, target: Target) -> str:
    """Return the key under which a job is published for one of its targets."""
    return f"{job.context}.{job.requirement}.{_scope(target)}"


def routing_keys(job: Job) -> tuple[str, ...]:
    """Return a job's routing keys, one for each target."""
    flags = f"{job.context}.{job.requirement}"
    return tuple([f"{flags}.{_scope(target)}" for target in job.targets])


def pause_key(workstation_name: str) -> str:
    """Return the key of a pause: one that reaches all agents of one workstation, and no others."""
    return f"{Context.FOREGROUND}.{Requirement.MANDATORY}.{_scope(workstation(workstation_name))}"


def report_key(state: str, workstation_name: str, agent: str) -> str:
    """Return the key of a report, or a check-in; `agent` is `service` or `interactive-USER`."""
    return f"{state}.{workstation_name}.{agent}"


def _scope(target: Target) -> str:
    return target.scope if target.name is None else f"{target.scope}.{target.name}"


def agent_name(kind: AgentKind, user: str = "") -> str:
    """Return an agent's name on its workstation; one word of a routing key."""
    return f"{kind}-{user}" if kind is AgentKind.INTERACTIVE else str(kind)


def login(kind: AgentKind, workstation_name: str, user: str = "") -> str:
    """Return the name of an enrolled agent's broker user; `@` is in no other name of ours."""
    return f"{agent_name(kind, user)}@{workstation_name}"


class Bearer(NamedTuple):
    """The one agent that a login, or a queue, is for."""

    workstation: str
    agent: str


_LOGIN = re.compile(r"(service|interactive-[a-z0-9_-]{1,63})@([a-z0-9_-]{1,63})")


@lru_cache(maxsize=100_000)
def bearer(login: str) -> Bearer | None:
    """Return whose login it is; None for one that is no enrolled agent's."""
    found = _LOGIN.fullmatch(login)
    return Bearer(found[2], found[1]) if found else None


def owner(queue: str) -> Bearer | None:
    """Return whose queue has a name; None where it is no agent's."""
    match queue.split("."):
        case ["pcm", AgentKind.SERVICE, workstation_name]:
            return Bearer(workstation_name, agent_name(AgentKind.SERVICE))
        case ["pcm", AgentKind.INTERACTIVE, workstation_name, user]:
            return Bearer(workstation_name, agent_name(AgentKind.INTERACTIVE, user))
        case _:
            return None


def groups_in(keys: Iterable[str]) -> list[str]:
    """Return the groups that binding keys are for, each once."""
    groups = (key.partition(".group.")[2] for key in keys)
    return list(dict.fromkeys(filter(None, groups)))


def queue_name(kind: AgentKind, workstation_name: str, user: str = "") -> str:
    """Return the name of an agent's queue; an interactive agent has one for each user."""
    name = f"pcm.{kind}.{workstation_name}"
    return f"{name}.{user}" if kind is AgentKind.INTERACTIVE else name


def binding_keys(kind: AgentKind, workstation_name: str, groups: Iterable[str]) -> list[str]:
    """Return the keys by which an agent's queue is bound to the jobs exchange."""
    scopes = [everyone, *(group(name) for name in groups), workstation(workstation_name)]
    return [f"{words}.{_scope(scope)}" for words in _patterns(kind) for scope in scopes]


def _patterns(kind: AgentKind) -> Iterator[str]:
    """Yield the fewest word pairs that match the kind's routes and no others."""
    bound = [route for route in ROUTES if kind in route.bound]
    if len(bound) == len(ROUTES):
        yield "*.*"
        return
    for context in Context:
        routes = [route for route in bound if route.context is context]
        if len(routes) == len(Requirement):
            yield f"{context}.*"
        else:
            yield from (route.words for route in routes)


QueueType = Literal["quorum", "classic"]


@dataclass(frozen=True)
class Queue:
    """A queue as it is declared."""

    name: str
    arguments: dict[str, FieldValue]
    bindings: tuple[tuple[str, str], ...] = ()
    matches: tuple[dict[str, FieldValue], ...] = ()


@dataclass(frozen=True)
class Exchange:
    """An exchange as it is declared; all are durable."""

    name: str
    type: ExchangeType
    purpose: str = field(compare=False)


EXCHANGES = (
    Exchange(REPORTS, ExchangeType.TOPIC, "reports, and what agents could not read"),
    # By headers: what the broker drops for its age is no dead letter, the rest is.
    Exchange(DEAD, ExchangeType.HEADERS, "what the broker gave up delivering"),
    Exchange(JOBS, ExchangeType.TOPIC, "jobs and cancellations, to the agents"),
)


def central_queues(max_age: str = "90D", max_bytes: int = 20_000_000_000) -> tuple[Queue, ...]:
    """Return the queues that are not an agent's: the stream of reports, and the dead letters.

    Args:
        max_age: how long the stream keeps what it holds, in RabbitMQ's units (Y, M, D, h, m, s).
        max_bytes: how much it keeps at most.
    """
    return (
        Queue(
            REPORTS,
            {"x-queue-type": "stream", "x-max-age": max_age, "x-max-length-bytes": max_bytes},
            bindings=tuple((REPORTS, key) for key in STREAM_KEYS),
        ),
        Queue(
            DEAD,
            # Each look of an administrator is a delivery, and what was delivered too often is
            # dropped: after 20 times, RabbitMQ 4 would by itself. A limit of -1, its word for
            # none, loses a letter at the first look on 3.10.
            {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000},
            bindings=((REPORTS, DEAD_KEY),),
            # A plain "all" would leave out what begins with x-, and so match whatever there is.
            matches=tuple(
                {"x-match": "all-with-x", "x-first-death-reason": reason}
                for reason in ("rejected", "delivery_limit")
            ),
        ),
    )


def agent_queue(
    kind: AgentKind,
    workstation_name: str,
    user: str,
    groups: Iterable[str],
    queue_type: QueueType,
    expires_ms: int | None,
) -> Queue:
    """Return an agent's queue; the broker deletes it when nobody used it for `expires_ms`.

    Without that, it stays for good.
    """
    arguments: dict[str, FieldValue] = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": DEAD,
    }
    if expires_ms is not None:
        arguments["x-expires"] = expires_ms
    if queue_type == "quorum":
        arguments["x-delivery-limit"] = 20  # RabbitMQ 4's default, on 3.10 as well
    else:
        arguments["x-queue-version"] = 2
    return Queue(
        queue_name(kind, workstation_name, user),
        arguments,
        bindings=tuple((JOBS, key) for key in binding_keys(kind, workstation_name, groups)),
    )


async def declare_queue(
    channel: AbstractChannel, queue: Queue, *, passive: bool = False
) -> AbstractQueue:
    """Declare a queue and bind it; `passive`: it is there, and stays as it is but for that."""
    declared = await channel.declare_queue(
        queue.name, durable=True, arguments=queue.arguments, passive=passive
    )
    for exchange, key in queue.bindings:
        await declared.bind(exchange, key)
    for match in queue.matches:
        await declared.bind(DEAD, "", arguments=match)
    return declared


async def apply(channel: AbstractChannel) -> None:
    """Declare the exchanges and the central queues; what is there already stays as it is."""
    *others, jobs = EXCHANGES
    for exchange in others:
        await channel.declare_exchange(exchange.name, exchange.type, durable=True)
    for queue in central_queues():
        await declare_queue(channel, queue)
    # Last: where it is, all else is, whoever was cut off meanwhile.
    await channel.declare_exchange(jobs.name, jobs.type, durable=True)


async def ensure(connection: AbstractConnection) -> None:
    """Declare the topology where it is missing; looking needs no permission, declaring does.

    Raises:
        BrokerError: the broker does not answer, or does not let us.
    """
    with translated("declaring the topology"):
        async with timeout(CALL_LIMIT):
            try:
                async with connection.channel() as channel:
                    for exchange in EXCHANGES:
                        await channel.declare_exchange(exchange.name, passive=True)
                    for queue in central_queues():
                        await channel.declare_queue(queue.name, passive=True)
            except ChannelNotFoundEntity:
                async with connection.channel() as channel:
                    await apply(channel)
