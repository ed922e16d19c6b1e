"""The permissions of an enrolled agent's login, tried by raw AMQP: it can do its work only.

Each attack is tried as the interactive agent, which must learn nothing of background jobs, and as
the service agent. `docs/security.md` has the table; with `PCM_TEST_AMQP_URL`,
`PCM_TEST_MANAGEMENT_URL` and `PCM_TEST_RABBITMQCTL` another broker is attacked.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

import aio_pika
import aiormq
import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.exceptions import (
    AMQPConnectionError,
    ChannelAccessRefused,
    ChannelPreconditionFailed,
)
from pamqp.commands import Basic
from yarl import URL

from broker import Dispatcher, DispatcherSettings
from broker.amqp.connection import Refused, Unreachable, connect
from broker.amqp.management import Management
from broker.amqp.topology import DEAD, JOBS, REPORTS, AgentKind, binding_keys
from broker.enrolment.definitions import central, merged, of_agents
from broker.enrolment.rights import AgentLogin, permissions, topic_permissions
from broker.settings import BrokerSettings
from schemas import Command, Job, everyone
from tests.support.queues import take_all
from tests.support.site import Settings, Site

# The same in all processes of a run, since tests are named after them.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:8]
HERE, OTHER = (f"{name}-{RUN}" for name in ("ws-a", "ws-b"))
SERVICE = AgentLogin(AgentKind.SERVICE, HERE)
ADA, BOB = (AgentLogin(AgentKind.INTERACTIVE, HERE, user) for user in ("ada", "bob"))
ELSEWHERE = AgentLogin(AgentKind.SERVICE, OTHER)
ATTACKERS = {"interactive": ADA, "service": SERVICE}
LEAKS_UNTIL = ((3, 13, 15), (4, 0, 20), (4, 1, 11), (4, 2, 6))  # the first that do not
WANT_CONFIGURE = {(4, 2, 6), (4, 3, 0)}  # for a passive declare; other versions accept any right
CHECKS_CC_SINCE = (4, 0)

Attack = Callable[[AbstractChannel, AgentLogin], Coroutine[Any, Any, Any]]


@pytest.fixture(scope="module")
def logins(site: Site) -> dict[str, Settings]:
    """Two workstations are enrolled: the settings of the first one's agents."""
    site.enrol(OTHER, "--group", "office")
    return site.enrol(HERE, "--user", "ada", "--user", "bob", "--group", "lab")


@asynccontextmanager
async def channel_of(url: str) -> AsyncIterator[AbstractChannel]:
    connection = await aiormq.connect(url)
    try:
        yield await connection.channel()
    finally:
        with suppress(AMQPConnectionError):  # the broker may have closed it
            await connection.close()


async def taken(site: Site, queue: str) -> list[str | None]:
    """Take all messages of a queue; return their ids."""
    connection = await aio_pika.connect(site.url)
    async with connection, connection.channel() as channel:
        return [message.message_id for message in await take_all(channel, queue)]


def bind(key: str, source: str = JOBS, queue: AgentLogin | str | None = None) -> Attack:
    async def attack(channel: AbstractChannel, own: AgentLogin) -> None:
        name = queue if isinstance(queue, str) else (queue or own).queue
        await channel.queue_bind(name, source, key)

    return attack


def unbind(key: str, queue: str | None = None, source: str = JOBS) -> Attack:
    async def attack(channel: AbstractChannel, own: AgentLogin) -> None:
        await channel.queue_unbind(queue or own.queue, source, key)

    return attack


def unbind_itself(channel: AbstractChannel, own: AgentLogin) -> Coroutine[Any, Any, Any]:
    (key, *_) = binding_keys(own.kind, own.workstation, ["lab"])
    return channel.queue_unbind(own.queue, JOBS, key)


def publish(exchange: str, key: str, **properties: Any) -> Attack:
    async def attack(channel: AbstractChannel, own: AgentLogin) -> None:
        sent = Basic.Properties(**properties)
        routing_key = key.replace("OWN", f"{own.workstation}.{own.name}")
        await channel.basic_publish(
            b"{}", exchange=exchange, routing_key=routing_key, properties=sent
        )

    return attack


def consume(queue: str, **arguments: Any) -> Attack:
    async def attack(channel: AbstractChannel, _: AgentLogin) -> None:
        await channel.basic_consume(queue, ignore, arguments=arguments)

    return attack


def get(queue: str) -> Attack:
    return lambda channel, _: channel.basic_get(queue)


def purge(queue: str) -> Attack:
    return lambda channel, _: channel.queue_purge(queue)


def delete(queue: str) -> Attack:
    return lambda channel, _: channel.queue_delete(queue)


def declare(queue: str | None = None, **arguments: Any) -> Attack:
    async def attack(channel: AbstractChannel, own: AgentLogin) -> None:
        name = own.queue if queue is None else queue
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        await channel.queue_declare(name, durable=True, arguments=words)

    return attack


def declare_exchange(name: str, **arguments: Any) -> Attack:
    async def attack(channel: AbstractChannel, _: AgentLogin) -> None:
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        await channel.exchange_declare(name, exchange_type="topic", durable=True, arguments=words)

    return attack


async def ignore(_: DeliveredMessage) -> None:
    pass


QUEUES = {
    "the service's queue": SERVICE,
    "another user's queue": BOB,
    "another workstation's queue": ELSEWHERE,
}
ATTACKS: dict[str, Attack] = {
    # To see other jobs: bindings
    **{
        f"bind {key}": bind(key)
        for key in (
            "#",
            "*.#",
            "#.all",
            "*.*.all",
            "*.*.*.*",
            "background.#",
            "background.*.all",
            "background.mandatory.all",
            f"background.*.workstation.{HERE}",
            f"foreground.*.workstation.{OTHER}",
            "foreground.*.group.office",
            "foreground.*.*.*",
            "foreground.*.all",  # its own: it has no right to bind even that
        )
    },
    "bind to the reports": bind("#", REPORTS),
    "bind to the dead letters": bind("", DEAD),
    "bind to amq.topic": bind("#", "amq.topic"),
    "bind to amq.rabbitmq.trace": bind("#", "amq.rabbitmq.trace"),
    "bind the stream to the jobs": bind("#", queue=REPORTS),
    "bind another user's queue": bind("foreground.*.all", queue=BOB),
    "bind the reports exchange to the jobs": lambda channel, _: channel.exchange_bind(
        REPORTS, JOBS, "#"
    ),
    "bind the jobs exchange to the reports": lambda channel, _: channel.exchange_bind(
        JOBS, REPORTS, "#"
    ),
    "bind amq.fanout to the jobs": lambda channel, _: channel.exchange_bind(
        "amq.fanout", JOBS, "#"
    ),
    # To see other jobs: queues
    **{f"consume {name}": consume(agent.queue) for name, agent in QUEUES.items()},
    **{f"get from {name}": get(agent.queue) for name, agent in QUEUES.items()},
    "consume the stream": consume(REPORTS, **{"x-stream-offset": "first"}),
    "get from the stream": get(REPORTS),
    "consume the dead letters": consume(DEAD),
    "get from the dead letters": get(DEAD),
    # To make queues and exchanges, or change them
    "declare a queue": declare("mine"),
    "declare a queue that the broker names": declare(""),
    "declare a queue that dead-letters to the jobs": declare(
        "mine", x_dead_letter_exchange=JOBS, x_dead_letter_routing_key="background.optional.all"
    ),
    "declare its own queue, dead-lettering to the jobs": declare(x_dead_letter_exchange=JOBS),
    "declare the service's queue": declare(SERVICE.queue),
    "declare a queue in another's name": declare(f"{SERVICE.queue}2"),
    "declare an exchange": declare_exchange("mine"),
    "declare an exchange whose alternate is the jobs": declare_exchange(
        "mine", alternate_exchange=JOBS
    ),
    "declare the jobs exchange with an alternate": declare_exchange(
        JOBS, alternate_exchange="amq.fanout"
    ),
    # To escape jobs, or keep others from theirs
    "unbind itself": unbind_itself,
    "unbind the stream": unbind("failed.*.*", REPORTS, REPORTS),
    "unbind another user's queue": unbind("foreground.*.all", BOB.queue),
    "unbind the jobs exchange": lambda channel, _: channel.exchange_unbind(REPORTS, JOBS, "#"),
    "delete its own queue": lambda channel, own: channel.queue_delete(own.queue),
    **{f"purge {name}": purge(agent.queue) for name, agent in QUEUES.items()},
    **{f"delete {name}": delete(agent.queue) for name, agent in QUEUES.items()},
    "purge the stream": purge(REPORTS),
    "delete the stream": delete(REPORTS),
    "purge the dead letters": purge(DEAD),
    "delete the jobs exchange": lambda channel, _: channel.exchange_delete(JOBS),
    "delete the reports exchange": lambda channel, _: channel.exchange_delete(REPORTS),
    # To order something
    "publish a background job": publish(JOBS, "background.optional.all"),
    "publish a foreground job to itself": publish(JOBS, f"foreground.optional.workstation.{HERE}"),
    "publish a job by CC": publish(
        JOBS, f"foreground.optional.workstation.{HERE}", headers={"CC": ["background.optional.all"]}
    ),
    "publish a job by BCC": publish(
        JOBS,
        f"foreground.optional.workstation.{HERE}",
        headers={"BCC": ["background.optional.all"]},
    ),
    "publish by the default exchange": publish("", SERVICE.queue),
    "publish by the default exchange's name": publish("amq.default", SERVICE.queue),
    "publish by the default exchange and CC": publish(
        "", "nobody", headers={"CC": [SERVICE.queue, ELSEWHERE.queue]}
    ),
    "publish to amq.topic": publish("amq.topic", "background.optional.all"),
    "publish a dead letter": publish(DEAD, "", headers={"x-first-death-reason": "rejected"}),
    # To speak in another's name
    "report as another workstation": publish(REPORTS, f"succeeded.{OTHER}.service"),
    "report as another user": publish(REPORTS, f"succeeded.{HERE}.{BOB.name}"),
    "check in as another workstation": publish(REPORTS, f"check_in.{OTHER}.service"),
    "report of a longer name": publish(REPORTS, "succeeded.OWN2"),
    "report of a longer key": publish(REPORTS, "succeeded.OWN.more"),
    "report of a key with a line end": publish(REPORTS, "succeeded.OWN\n"),
    "report of a key in front": publish(REPORTS, "more.succeeded.OWN"),
    "report with a wildcard": publish(REPORTS, f"succeeded.{HERE}.*"),
    "report with a pattern": publish(REPORTS, "succeeded..*.service"),
    "record a job": publish(REPORTS, "job.20261125-120000-aaaaaaaaaa"),
    "record a cancellation": publish(REPORTS, "cancellation.20261125-120000-aaaaaaaaaa"),
    "record a departure": publish(REPORTS, f"departure.{HERE}"),
    "mark the stream": publish(REPORTS, "mark.1"),
    # By the broker's own queues
    "answer by direct reply-to": publish("", "amq.rabbitmq.reply-to.g1h2AA"),
    "consume the broker's log": bind("#", "amq.rabbitmq.log"),
}


ITS_OWN_WORK = [("service", f"{do} the service's queue") for do in ("consume", "get from", "purge")]
TRIED = [
    (attacker, attack)
    for attack in ATTACKS
    for attacker in ATTACKERS
    if (attacker, attack) not in ITS_OWN_WORK
]


@pytest.mark.parametrize(("attacker", "attack"), TRIED)
async def test_it_is_refused(logins: dict[str, Settings], attacker: str, attack: str) -> None:
    own = ATTACKERS[attacker]
    async with channel_of(logins[own.name]["PCM_AMQP_URL"]) as channel:
        with pytest.raises(ChannelAccessRefused):
            await asyncio.wait_for(ATTACKS[attack](channel, own), 30)


@pytest.mark.parametrize("attacker", ATTACKERS)
async def test_the_services_name_is_not_the_users(
    logins: dict[str, Settings], attacker: str
) -> None:
    """Each agent can report in its own name only, not in another's on the same workstation."""
    own, other = ATTACKERS[attacker], (SERVICE if attacker == "interactive" else ADA)
    url = logins[own.name]["PCM_AMQP_URL"]
    async with channel_of(url) as channel:
        await publish(REPORTS, "failed.OWN", user_id=own.login)(channel, own)
        with pytest.raises(ChannelAccessRefused):
            await publish(REPORTS, f"failed.{HERE}.{other.name}")(channel, own)
    for stranger in (other.login, ELSEWHERE.login, "guest"):
        async with channel_of(url) as channel:
            with pytest.raises(ChannelPreconditionFailed, match="user_id"):
                await publish(REPORTS, "failed.OWN", user_id=stranger)(channel, own)


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_further_keys_are_checked_or_tell_their_login(
    site: Site, logins: dict[str, Settings], header: str
) -> None:
    """Before 4.0 the broker checks the first key only; the user id identifies the publisher."""
    headers = {header: [f"succeeded.{OTHER}.service"]}
    async with channel_of(logins[ADA.name]["PCM_AMQP_URL"]) as channel:
        attack = publish(REPORTS, "failed.OWN", headers=headers)(channel, ADA)
        if site.broker.version >= CHECKS_CC_SINCE:
            with pytest.raises(ChannelAccessRefused):
                await attack
        else:
            await attack
            forged = publish(REPORTS, "failed.OWN", headers=headers, user_id=ELSEWHERE.login)
            with pytest.raises(ChannelPreconditionFailed, match="user_id"):
                await forged(channel, ADA)


@pytest.mark.parametrize("attacker", ATTACKERS)
@pytest.mark.parametrize("queue", [SERVICE.queue, ELSEWHERE.queue, BOB.queue, REPORTS, DEAD])
async def test_how_much_waits_is_reported_to_those_with_a_right(
    site: Site, logins: dict[str, Settings], queue: str, attacker: str
) -> None:
    """A passive declare returns the number of messages only; older brokers required no right.

    Every agent has one on `pcm.reports`: to write to the exchange, whose name the stream shares.
    """
    version = site.broker.version
    fixed = next((first for first in LEAKS_UNTIL if first[:2] == version[:2]), LEAKS_UNTIL[0])
    own = ATTACKERS[attacker]
    with_right = queue in {own.queue, REPORTS} and version not in WANT_CONFIGURE
    async with channel_of(logins[own.name]["PCM_AMQP_URL"]) as channel:
        if version < fixed or with_right:
            found = await channel.queue_declare(queue, passive=True)
            assert found.queue == queue
        else:
            with pytest.raises(ChannelAccessRefused):
                await channel.queue_declare(queue, passive=True)


async def test_direct_reply_to_leads_nowhere(logins: dict[str, Settings]) -> None:
    """Every login may consume from reply-to; no agent answers there, or may publish with it."""
    own = ADA
    async with channel_of(logins[own.name]["PCM_AMQP_URL"]) as channel:
        await channel.basic_consume("amq.rabbitmq.reply-to", ignore, no_ack=True)
        with pytest.raises(ChannelAccessRefused):
            await publish(JOBS, "foreground.optional.all", reply_to="amq.rabbitmq.reply-to")(
                channel, own
            )


async def test_its_own_queue_is_its_own(site: Site, logins: dict[str, Settings]) -> None:
    """A login that may read may purge; this costs its own foreground jobs, and no others."""
    job = Job(command=Command(argv=("true",)), targets=(everyone,))
    async with Dispatcher.connect(DispatcherSettings(amqp_url=(site.url,))) as dispatcher:
        await dispatcher.dispatch(job)
    async with channel_of(logins[ADA.name]["PCM_AMQP_URL"]) as channel:
        purged = await channel.queue_purge(ADA.queue)
        assert purged.message_count == 1
    for agent in (SERVICE, BOB, ELSEWHERE):
        assert await taken(site, agent.queue) == [job.id]


async def test_no_other_virtual_host_and_no_management(
    site: Site, logins: dict[str, Settings]
) -> None:
    """The login is good for one virtual host, and for AMQP only."""
    url = URL(logins[ADA.name]["PCM_AMQP_URL"])
    with pytest.raises(Unreachable):
        async with connect(BrokerSettings(amqp_url=(str(url.with_path("/")),)), "attack"):
            pass
    management = Management(site.broker.management_url, ADA.login, url.password or "")
    for path in (("queues",), ("users",), ("definitions",), ("whoami",)):
        with pytest.raises(Refused, match="Not management user"):
            management.get(*path)


async def test_patterns_match_whole_names(site: Site, logins: dict[str, Settings]) -> None:
    """Dots are dots: queues and exchanges of names that only look alike are out of reach."""
    alike = [ADA.queue.replace(".", "x"), f"{ADA.queue}2", f"x{ADA.queue}", ADA.queue[:-1]]
    exchanges = [REPORTS.replace(".", "x"), f"{REPORTS}2", f"x{REPORTS}"]
    async with channel_of(site.url) as channel:
        for name in alike:
            await channel.queue_declare(name, durable=True)
        for name in exchanges:
            await channel.exchange_declare(name, exchange_type="topic", durable=True)
    try:
        for attack in (*map(consume, alike), *(publish(name, "failed.OWN") for name in exchanges)):
            async with channel_of(logins[ADA.name]["PCM_AMQP_URL"]) as channel:
                with pytest.raises(ChannelAccessRefused):
                    await attack(channel, ADA)
    finally:
        async with channel_of(site.url) as channel:
            for name in alike:
                await channel.queue_delete(name)
            for name in exchanges:
                await channel.exchange_delete(name)


def test_names_are_no_patterns(site: Site) -> None:
    """A name with more than letters, digits, '-' and '_' is refused before anything is done."""
    for words in (("ws.*",), ("ws-a|.*",), ("ws{username}",), ("ws-q", "--group", "#")):
        done = site.pcm("enrol", *words)
        assert done.returncode == 2
        reasons = ("is not a name", "matches no workstation that the history knows")
        assert any(reason in done.stderr for reason in reasons)
    for user in ("a/b", "a:b", "a\nb", ""):
        done = site.pcm("enrol", "ws-q", "--user", user)
        assert done.returncode == 2
        assert "is not a login name" in done.stderr
    assert site.management.get("users", "service@ws-q") is None


async def test_the_second_wall(site: Site, logins: dict[str, Settings]) -> None:
    """With permission to bind it still cannot bind a background key, nor a wildcard for one."""
    more = {**permissions(ADA), "read": ".*", "write": ".*"}
    place = ("permissions", site.virtual_host, ADA.login)
    site.management.put(*place, body=more)
    url = logins[ADA.name]["PCM_AMQP_URL"]
    keys = binding_keys(ADA.kind, HERE, ["lab"])
    try:
        for name, attack in ATTACKS.items():
            key = name.removeprefix("bind ")
            if key == name or (key[0] not in "#*" and key.partition(".")[0] != "background"):
                continue
            async with channel_of(url) as channel:
                with pytest.raises(ChannelAccessRefused, match="topic"):
                    await attack(channel, ADA)
        for key in keys:
            async with channel_of(url) as channel:
                await bind(key)(channel, ADA)
        for attack in (publish(JOBS, keys[0].replace("*", "optional")), bind("#", REPORTS)):
            async with channel_of(url) as channel:
                with pytest.raises(ChannelAccessRefused, match="topic"):
                    await attack(channel, ADA)
    finally:
        site.management.put(*place, body=permissions(ADA))


def test_a_row_stands_on_each_topic_exchange(site: Site, logins: dict[str, Settings]) -> None:
    """Without a row for a user, RabbitMQ allows all topics."""
    assert logins
    topics = {
        exchange["name"]
        for exchange in site.management.get("exchanges", site.virtual_host)
        if exchange["type"] == "topic" and not exchange["name"].startswith("amq.")
    }
    for agent in (SERVICE, ADA, BOB, ELSEWHERE):
        rows = site.management.get("topic-permissions", site.virtual_host, agent.login)
        assert {row["exchange"] for row in rows} == topics
        groups = ["office"] if agent is ELSEWHERE else ["lab"]
        allowed = {row["exchange"]: {w: row[w] for w in ("write", "read")} for row in rows}
        assert allowed == topic_permissions(agent, groups)


async def test_nothing_came_of_it(site: Site, logins: dict[str, Settings]) -> None:
    """After all attacks the broker has the enrolled entities; background jobs reach no user."""
    assert logins
    host = site.virtual_host
    here = of_agents(host, [SERVICE, ADA, BOB], ["lab"], {}, "quorum")
    expected = merged(central(host), here, of_agents(host, [ELSEWHERE], ["office"], {}, "quorum"))

    def bound(rows: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {
            (row["source"], row["destination"], row["routing_key"]) for row in rows if row["source"]
        }

    assert bound(site.management.get("bindings", host)) == bound(expected["bindings"])
    found = {queue["name"]: queue["arguments"] for queue in site.management.get("queues", host)}
    assert found == {queue["name"]: queue["arguments"] for queue in expected["queues"]}
    assert {
        exchange["name"]
        for exchange in site.management.get("exchanges", host)
        if exchange["name"] and not exchange["name"].startswith("amq.")
    } == {exchange["name"] for exchange in expected["exchanges"]}
    job = Job(command=Command(argv=("true",), background=True), targets=(everyone,))
    async with Dispatcher.connect(DispatcherSettings(amqp_url=(site.url,))) as dispatcher:
        await dispatcher.dispatch(job)
    for agent in (ADA, BOB):
        assert await taken(site, agent.queue) == []
    assert await taken(site, SERVICE.queue) == [job.id]
