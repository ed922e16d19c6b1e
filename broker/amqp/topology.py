"""The topology: exchanges, queues, routing keys and bindings.

All bindings derive from the table `ROUTES`, as do permissions, `pcm topology show` and the tests.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import Literal, NamedTuple

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractQueue
from aio_pika.exceptions import ChannelNotFoundEntity
from aiormq.exceptions import ChannelAccessRefused
from pamqp.common import FieldValue

from broker.amqp.connection import CALL_LIMIT, connect, map_errors
from broker.amqp.timeouts import timeout
from broker.settings import BrokerSettings, load
from schemas import Context, Job, Requirement, State, Target, everyone, group, workstation
from schemas.names import user_of_word, user_word
from schemas.reports.report import INTERACTIVE

JOBS = "pcm.jobs"
REPORTS = "pcm.reports"
DEAD = "pcm.dead"


class AgentKind(StrEnum):
    """The two agents of a workstation."""

    SERVICE = "service"
    INTERACTIVE = "interactive"


@dataclass(frozen=True)
class Route:
    """A kind of job, and the agents that receive it."""

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

# The stream's entries: reports and check-ins of agents, orders and plans of administrators, and the
# end markers by which a reader knows that it has caught up.
STREAM_KEYS = (
    *(f"{state}.*.*" for state in (*State, "check_in")),
    *(
        f"{kind}.*"
        for kind in (
            "job",
            "cancellation",
            "departure",
            "revocation",
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
    """Return the key of a pause; it reaches all agents of one workstation, and no others."""
    return f"{Context.FOREGROUND}.{Requirement.MANDATORY}.{_scope(workstation(workstation_name))}"


def report_key(state: str, workstation_name: str, agent: str) -> str:
    """Return the key of a report or check-in; `agent` is `service` or `interactive-USER`."""
    return f"{state}.{workstation_name}.{agent_word(agent)}"


def _scope(target: Target) -> str:
    return target.scope if target.name is None else f"{target.scope}.{target.name}"


def agent_name(kind: AgentKind, user: str = "") -> str:
    """Return an agent's name on its workstation; it has the user's login name as it is."""
    return f"{INTERACTIVE}{user}" if kind is AgentKind.INTERACTIVE else str(kind)


def agent_word(agent: str) -> str:
    """Return an agent's name as a word of routing keys, broker logins and folders."""
    user = agent.removeprefix(INTERACTIVE)
    return agent if user == agent else INTERACTIVE + user_word(user)


def agent_of_word(word: str) -> str | None:
    """Return the name of an agent; None if it is no agent's word.

    A word that was shortened is returned as it is, since the name cannot be computed from it.
    """
    if word == AgentKind.SERVICE:
        return word
    user = user_of_word(word.removeprefix(INTERACTIVE)) if word.startswith(INTERACTIVE) else None
    return None if user is None else INTERACTIVE + user


def login(kind: AgentKind, workstation_name: str, user: str = "") -> str:
    """Return the login of an enrolled agent; only agents' logins contain `@`."""
    return f"{agent_word(agent_name(kind, user))}@{workstation_name}"


class AgentIdentity(NamedTuple):
    """The agent of a login or a queue; its name as from `agent_of_word`."""

    workstation: str
    agent: str

    def is_named(self, workstation_name: str, agent: str) -> bool:
        """Whether it is the agent of a name."""
        return (workstation_name, agent_word(agent)) == (self.workstation, agent_word(self.agent))


_LOGIN = re.compile(r"(service|interactive-[a-z0-9_:-]+)@([a-z0-9_-]{1,63})")


@lru_cache(maxsize=100_000)
def agent_of_login(login: str) -> AgentIdentity | None:
    """Return the enrolled agent of a login; None for other logins."""
    match = _LOGIN.fullmatch(login)
    agent = agent_of_word(match[1]) if match else None
    return AgentIdentity(match[2], agent) if match and agent else None


def agent_of_queue(queue: str) -> AgentIdentity | None:
    """Return the agent of a queue's name; None for other queues."""
    match queue.split("."):
        case ["pcm", AgentKind.SERVICE, workstation_name]:
            return AgentIdentity(workstation_name, agent_name(AgentKind.SERVICE))
        case ["pcm", AgentKind.INTERACTIVE, workstation_name, word]:
            agent = agent_of_word(INTERACTIVE + word)
            return AgentIdentity(workstation_name, agent) if agent else None
        case _:
            return None


def groups_in(keys: Iterable[str]) -> list[str]:
    """Return the groups in binding keys, each once."""
    groups = (key.partition(".group.")[2] for key in keys)
    return list(dict.fromkeys(filter(None, groups)))


def queue_name(kind: AgentKind, workstation_name: str, user: str = "") -> str:
    """Return the name of an agent's queue; an interactive agent has one for each user."""
    name = f"pcm.{kind}.{workstation_name}"
    return f"{name}.{user_word(user)}" if kind is AgentKind.INTERACTIVE else name


def binding_keys(kind: AgentKind, workstation_name: str, groups: Iterable[str]) -> list[str]:
    """Return the binding keys of an agent's queue at the jobs exchange."""
    targets = [everyone, *(group(name) for name in groups), workstation(workstation_name)]
    return target_keys(kind, targets)


def target_keys(kind: AgentKind, targets: Collection[Target]) -> list[str]:
    """Return the binding keys by which an agent's queue receives the jobs for targets."""
    return [f"{words}.{_scope(target)}" for words in _patterns(kind) for target in targets]


def _patterns(kind: AgentKind) -> Iterator[str]:
    """Yield the fewest key patterns that match the agent's routes and no others."""
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
    """The declaration of a queue."""

    name: str
    arguments: dict[str, FieldValue]
    bindings: tuple[tuple[str, str], ...] = ()
    matches: tuple[dict[str, FieldValue], ...] = ()


@dataclass(frozen=True)
class Exchange:
    """The declaration of a durable exchange."""

    name: str
    type: ExchangeType
    purpose: str = field(compare=False)


EXCHANGES = (
    Exchange(REPORTS, ExchangeType.TOPIC, "reports, and messages that agents rejected"),
    # By headers: expired messages are no dead letters.
    Exchange(DEAD, ExchangeType.HEADERS, "messages that the broker gave up delivering"),
    Exchange(JOBS, ExchangeType.TOPIC, "jobs and cancellations, to the agents"),
)


def central_queues(max_age: str = "90D", max_bytes: int = 20_000_000_000) -> tuple[Queue, ...]:
    """Return the queues of no agent: the stream of reports, and the dead letters.

    Args:
        max_age: the stream's retention, in RabbitMQ's units (Y, M, D, h, m, s).
        max_bytes: the stream's maximum size.
    """
    return (
        Queue(
            REPORTS,
            {"x-queue-type": "stream", "x-max-age": max_age, "x-max-length-bytes": max_bytes},
            bindings=tuple((REPORTS, key) for key in STREAM_KEYS),
        ),
        Queue(
            DEAD,
            # `pcm dead list` counts as a delivery, and after too many the message is dropped, by
            # default after 20 on RabbitMQ 4. The value -1, for no limit, drops a message at its
            # first return on 3.10.
            {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000_000},
            bindings=((REPORTS, DEAD_KEY),),
            # Plain "all" ignores headers that start with x-, and so matches every message.
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
    """Return an agent's queue; the broker deletes it when it is unused for `expires_ms`.

    With None the broker never deletes it.
    """
    arguments: dict[str, FieldValue] = {
        "x-queue-type": queue_type,
        "x-dead-letter-exchange": DEAD,
    }
    if expires_ms is not None:
        arguments["x-expires"] = expires_ms
    if queue_type == "quorum":
        arguments["x-delivery-limit"] = 20  # RabbitMQ 4's default, set for 3.10
        # A quorum queue ignores the flag "exclusive" of a consumer.
        arguments["x-single-active-consumer"] = True
    else:
        arguments["x-queue-version"] = 2
    return Queue(
        queue_name(kind, workstation_name, user),
        arguments,
        bindings=tuple((JOBS, key) for key in binding_keys(kind, workstation_name, groups)),
    )


class QueueCounts(NamedTuple):
    """The numbers of a queue's ready messages and of its consumers.

    Of a queue with a single active consumer, a quorum queue counts that one alone, and none if its
    node is down.
    """

    messages: int
    consumers: int


async def count(connection: AbstractConnection, queue: str) -> QueueCounts | None:
    """Return the counts of a queue; None if it is missing, or this login may not read it."""
    try:
        async with connection.channel() as channel:
            declared = await channel.declare_queue(queue, passive=True)
    except (ChannelAccessRefused, ChannelNotFoundEntity):
        return None
    counts = declared.declaration_result
    return QueueCounts(counts.message_count or 0, counts.consumer_count or 0)


async def declare_queue(
    channel: AbstractChannel, queue: Queue, *, passive: bool = False
) -> AbstractQueue:
    """Declare a queue and bind it; `passive`: only bind an existing queue."""
    declared = await channel.declare_queue(
        queue.name, durable=True, arguments=queue.arguments, passive=passive
    )
    for exchange, key in queue.bindings:
        await declared.bind(exchange, key)
    for match in queue.matches:
        await declared.bind(DEAD, "", arguments=match)
    return declared


async def apply(channel: AbstractChannel) -> None:
    """Declare the exchanges and the central queues; existing ones stay unchanged."""
    *others, jobs = EXCHANGES
    for exchange in others:
        await channel.declare_exchange(exchange.name, exchange.type, durable=True)
    for queue in central_queues():
        await declare_queue(channel, queue)
    # Last: if it exists, an interrupted call has declared all others.
    await channel.declare_exchange(jobs.name, jobs.type, durable=True)


async def apply_topology(settings: BrokerSettings | None = None) -> None:
    """Connect, and declare the exchanges and the central queues, as `pcm topology apply` does.

    Existing ones are not changed.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        BrokerError: the broker is unreachable or refuses, or one exists with other properties.
    """
    settings = settings or load(BrokerSettings)
    async with connect(settings, "pcm topology") as connection, connection.channel() as channel:
        with map_errors("declaring the topology"):
            await apply(channel)


async def ensure(connection: AbstractConnection) -> None:
    """Declare the topology if it is missing; only that needs permissions, the check does not.

    Raises:
        BrokerError: the broker does not answer, or refuses.
    """
    with map_errors("declaring the topology"):
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
