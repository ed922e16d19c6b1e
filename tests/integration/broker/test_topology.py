"""The rule, in the topology: what no queue is bound to cannot be received."""

import aio_pika

from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.topology import AgentKind
from broker.settings import BrokerSettings
from tests.support.queues import take_all, until_queue
from tests.support.rabbitmq import Broker


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
                got = {message.body.decode() for message in await take_all(channel, found.name)}
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
            await until_queue(node, queue.name, ready=0)
            assert await take_all(channel, queue.name) == []
            await exchange.publish(aio_pika.Message(b"bad"), key)
            (message,) = await take_all(channel, queue.name, no_ack=False)
            await message.reject(requeue=False)
            while (letter := await dead.get(fail=False)) is None:
                pass
            assert letter.body == b"bad"
            await letter.ack()
            assert await dead.get(fail=False) is None
            await dying.delete(if_unused=False, if_empty=False)
