"""The rule, in the topology: what no queue is bound to cannot be received."""

import asyncio
import re

import aio_pika
from hypothesis import given
from hypothesis import strategies as st

from broker import topology
from broker.connection import connect
from broker.settings import BrokerSettings
from broker.topology import AgentKind, binding_keys, queue_name, routing_keys
from schemas import Command, Context, Job, Requirement, State, Target, everyone, group, workstation
from tests.rabbitmq import Broker

NAMES = st.from_regex(r"[a-z0-9_-]{1,20}", fullmatch=True)


def matches(pattern: str, key: str) -> bool:
    """Whether a topic binding matches a key; `*` is one word."""
    regex = r"\.".join("[^.]+" if word == "*" else re.escape(word) for word in pattern.split("."))
    return re.fullmatch(regex, key) is not None


def job(context: Context, requirement: Requirement, *targets: Target) -> Job:
    mandatory_at = {"mandatory_at": "2026-11-30T12:00:00Z"}
    return Job.model_validate(
        {
            "command": Command(argv=("true",), background=context is Context.BACKGROUND),
            "targets": targets,
            **(mandatory_at if requirement is Requirement.MANDATORY else {}),
        }
    )


@given(
    st.sampled_from(Context),
    st.sampled_from(Requirement),
    st.one_of(st.just(everyone), NAMES.map(group), NAMES.map(workstation)),
    NAMES,
    st.sets(NAMES, max_size=4),
)
def test_who_is_bound_is_who_is_addressed_and_allowed(
    context: Context, requirement: Requirement, target: Target, name: str, groups: set[str]
) -> None:
    """Q165147: the interactive agent is bound to no background key, whatever its groups."""
    (key,) = routing_keys(job(context, requirement, target))
    addressed = (
        target == everyone
        or (target.scope == "group" and target.name in groups)
        or (target.scope == "workstation" and target.name == name)
    )
    for kind in AgentKind:
        bound = any(matches(pattern, key) for pattern in binding_keys(kind, name, sorted(groups)))
        allowed = kind is AgentKind.SERVICE or context is Context.FOREGROUND
        assert bound == (addressed and allowed)


async def test_the_broker_routes_as_the_table_says(node: Broker) -> None:
    """Real queues: the interactive one gets what the table binds it to, and nothing else."""
    async with connect(BrokerSettings(amqp_url=(node.url,)), "test") as connection:
        await topology.ensure(connection)
        async with connection.channel() as channel:
            queues = {}
            for kind in AgentKind:
                queue = topology.agent_queue(kind, "table", "ada", ["lab"], "quorum", 600_000)
                queues[kind] = await topology.declare_queue(channel, queue)
            exchange = await channel.get_exchange(topology.JOBS)
            for route in topology.ROUTES:
                for scope in ("all", "group.lab", "workstation.table"):
                    key = f"{route.words}.{scope}"
                    await exchange.publish(aio_pika.Message(key.encode()), key)
            for kind, found in queues.items():
                got = set()
                while message := await found.get(fail=False):
                    await message.ack()
                    got.add(message.body.decode())
                assert got == {
                    f"{route.words}.{scope}"
                    for route in topology.ROUTES
                    if kind in route.bound
                    for scope in ("all", "group.lab", "workstation.table")
                }
                await found.delete(if_unused=False, if_empty=False)
    assert {key for key in got if key.startswith("background")} == set()


async def test_a_classic_queue_is_declared_too(node: Broker) -> None:
    async with (
        connect(BrokerSettings(amqp_url=(node.url,)), "test") as connection,
        connection.channel() as channel,
    ):
        await topology.apply(channel)
        queue = topology.agent_queue(AgentKind.SERVICE, "classic", "", [], "classic", 600_000)
        declared = await topology.declare_queue(channel, queue)
        await declared.delete(if_unused=False, if_empty=False)


async def test_expired_messages_are_no_dead_letters_and_rejected_ones_are(node: Broker) -> None:
    async with connect(BrokerSettings(amqp_url=(node.url,)), "test") as connection:
        await topology.ensure(connection)
        async with connection.channel() as channel:
            dead = await channel.get_queue(topology.DEAD)
            await dead.purge()
            queue = topology.agent_queue(AgentKind.SERVICE, "dying", "", [], "quorum", 600_000)
            dying = await topology.declare_queue(channel, queue)
            exchange = await channel.get_exchange(topology.JOBS)
            key = "background.optional.workstation.dying"
            await exchange.publish(aio_pika.Message(b"old", expiration=0.001), key)
            await asyncio.sleep(0.1)
            assert await dying.get(fail=False) is None
            await exchange.publish(aio_pika.Message(b"bad"), key)
            message = await dying.get()
            await message.reject(requeue=False)
            while (letter := await dead.get(fail=False)) is None:
                pass
            assert letter.body == b"bad"
            await letter.ack()
            assert await dead.get(fail=False) is None
            await dying.delete(if_unused=False, if_empty=False)


def test_names_of_queues_and_keys() -> None:
    assert queue_name(AgentKind.SERVICE, "ws-042") == "pcm.service.ws-042"
    assert queue_name(AgentKind.INTERACTIVE, "ws-042", "ada") == "pcm.interactive.ws-042.ada"
    assert topology.report_key(State.FAILED, "ws-042", "interactive-ada") == (
        "failed.ws-042.interactive-ada"
    )
