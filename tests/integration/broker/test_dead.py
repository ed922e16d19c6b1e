"""The letters in `pcm.dead`: seen without harm, sent again once, or dropped for good."""

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from broker import Dispatcher, DispatcherSettings, Unroutable
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.topology import AgentKind
from broker.dead_letters.letters import DeadLetters, UnknownLetter
from broker.dead_letters.resending import NotRequeued
from schemas import Job, State
from tests.support.programs import BIN
from tests.support.queues import take_all, until_held, until_queue
from tests.support.rabbitmq import Broker, Node
from tests.support.terminal import OnTerminal
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, agents_of, final, follow


@pytest.fixture
async def channel(settings: DispatcherSettings) -> AsyncIterator[AbstractChannel]:
    async with connect(settings, "test") as connection:
        await topology.ensure(connection)
        async with connection.channel() as opened:
            yield opened


def rows(ws: Workstation, count: int) -> list[dict[str, Any]]:
    """Return the letters of a workstation, as they are listed, once there are so many."""
    deadline = time.monotonic() + LIMIT
    while True:
        done = ws.run("pcm", "dead", "list", "--json")
        if "another program" in done.stderr:  # on a slow machine we may have to wait for long
            assert time.monotonic() < deadline
            continue
        assert (done.returncode, done.stderr) == (0, "")
        found = [row for row in json.loads(done.stdout) if row["workstation"] == ws.name]
        if len(found) == count:
            return found
        # The broker sends on what it gives up a little later.
        assert time.monotonic() < deadline, found


async def poison(
    node: Broker, ws: Workstation, channel: AbstractChannel, *bodies: bytes, **fields: Any
) -> None:
    """Have the workstation's service agent refuse what it cannot read."""
    service = ws.start("service")
    exchange = await channel.get_exchange(topology.JOBS)
    for body in bodies:
        message = aio_pika.Message(body, type="job", user_id="guest", **fields)
        await exchange.publish(message, f"background.optional.workstation.{ws.name}")
    service.wait_for("message.refused", len(bodies))
    await until_held(node, 0)  # it logs before it acknowledges, and what is not comes again
    assert service.end() == 0


async def fetch(ws: Workstation, channel: AbstractChannel) -> AbstractIncomingMessage:
    """Return the next message for the service agent; who consumed before may hold it a while."""
    queue = await channel.get_queue(topology.queue_name(AgentKind.SERVICE, ws.name))
    async with asyncio.timeout(LIMIT), queue.iterator() as messages:
        return await anext(messages)


async def give_up(ws: Workstation, channel: AbstractChannel, count: int = 1) -> None:
    """Have the broker give up delivering what waits for the workstation's service agent."""
    for _ in range(count):
        await (await fetch(ws, channel)).reject(requeue=False)


async def put(
    channel: AbstractChannel,
    body: bytes,
    kind: str = "job",
    login: str | None = "guest",
    **headers: Any,
) -> None:
    """Put a letter there, as an agent would."""
    message = aio_pika.Message(body, type=kind, headers=headers, user_id=login)
    await channel.default_exchange.publish(message, topology.DEAD)


async def test_what_an_agent_could_not_read_is_listed_shown_and_dropped(
    node: Broker, ws: Workstation, channel: AbstractChannel
) -> None:
    bad = b"no json \x1b[31m\xff"
    await poison(node, ws, channel, bad, b'{"kind": "jobs"}', message_id=f"job-of-{ws.name}")
    first, second = rows(ws, 2)
    assert (first["agent"], first["job"], first["count"]) == ("service", f"job-of-{ws.name}", 1)
    assert "Invalid JSON" in first["reason"]
    assert datetime.now(UTC) - datetime.fromisoformat(first["at"]) < timedelta(minutes=1)
    listed = ws.run("pcm", "dead", "list")
    assert listed.returncode == 0
    (line,) = [line for line in listed.stdout.splitlines() if first["id"] in line]
    assert line.split()[4:6] == [ws.name, "service"]

    shown = ws.run("pcm", "dead", "show", first["id"][:9].upper())
    assert shown.returncode == 0
    assert f"routing key   background.optional.workstation.{ws.name}\n" in shown.stdout
    assert shown.stdout.endswith("\n\nno json \\x1b[31m\\xff\n")
    whole = json.loads(ws.run("pcm", "dead", "show", "--json", first["id"]).stdout)
    assert whole["body"] == {"base64": "bm8ganNvbiAbWzMxbf8="}
    assert whole["headers"]["workstation"] == ws.name
    whole = json.loads(ws.run("pcm", "dead", "show", "--json", second["id"]).stdout)
    assert whole["body"] == '{"kind": "jobs"}'

    dropped = ws.run("pcm", "dead", "drop", first["id"], first["id"][:10])
    assert dropped.returncode == 0
    assert dropped.stdout.startswith(f"{first['id']}: dropped: {ws.name}  service  ")
    assert len(dropped.stdout.splitlines()) == 1
    assert [row["id"] for row in rows(ws, 1)] == [second["id"]]


async def test_a_job_that_the_broker_gave_up_is_sent_again_and_runs_once(
    dispatcher: Dispatcher, ws: Workstation, channel: AbstractChannel
) -> None:
    """To all its targets: an agent that has run it already does nothing."""
    assert ws.start("service").end() == 0
    there = Workstation(f"{ws.name}-b", ws.environment["PCM_AMQP_URL"], ws.folder / "b")
    there.folder.mkdir()
    try:
        there.start("service")
        job = ws.job("true", background=True, expires_at=datetime.now(UTC) + timedelta(hours=1))
        job = job.model_copy(update={"targets": (ws.target, there.target)})
        await dispatcher.dispatch(job)
        await give_up(ws, channel)
        (row,) = rows(ws, 1)
        assert (row["agent"], row["job"]) == ("service", job.id)
        assert "rejected" in row["reason"]
        done = ws.run("pcm", "dead", "requeue", row["id"])
        assert (done.returncode, done.stderr) == (0, "")
        assert f"{row['id']}: sent again as {topology.routing_keys(job)[0]}" in done.stdout
        assert rows(ws, 0) == []
        message = await fetch(ws, channel)
        assert message.body == job.body()
        assert 3500 < float(str(message.expiration)) < 3600
        await message.reject(requeue=True)
        ws.start("service")
        reports = await follow(dispatcher, job)
    finally:
        there.stop()
    for name in (ws.name, there.name):
        mine = [report for report in reports if report.workstation == name]
        assert final(mine).state is State.SUCCEEDED
        assert agents_of(mine, State.STARTED) == {"service"}
        assert sum(report.state is State.STARTED for report in mine) == 1


async def test_a_cancellation_and_unreadable_messages_go_where_they_were_sent(
    dispatcher: Dispatcher, node: Broker, ws: Workstation, channel: AbstractChannel
) -> None:
    await poison(node, ws, channel, b"unreadable", message_id="poison")
    job = await dispatcher.dispatch(ws.job("true", background=True))
    cancellation = await dispatcher.cancel(job.id)
    await give_up(ws, channel, 2)
    letters = {row["id"]: row for row in rows(ws, 3)}
    assert [row["job"] for row in letters.values()] == ["poison", job.id, job.id]
    done = ws.run("pcm", "dead", "requeue", *letters)
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(ws, 0) == []
    for kind, body in (
        ("job", b"unreadable"),
        ("job", job.body()),
        ("cancellation", cancellation.body()),
    ):
        message = await fetch(ws, channel)
        assert (message.type, message.body) == (kind, body)
        await message.ack()


async def test_what_cannot_be_sent_again_stays_and_others_go_on(
    dispatcher: Dispatcher, ws: Workstation, channel: AbstractChannel
) -> None:
    assert ws.start("service").end() == 0
    past = datetime.now(UTC) - timedelta(hours=1)
    late = ws.job("true", background=True, created_at=past, expires_at=past + timedelta(minutes=1))
    good = await dispatcher.dispatch(ws.job("true", background=True))
    await give_up(ws, channel)
    here = {"workstation": ws.name, "agent": "service"}
    await put(channel, b"{}", "ledger", reason="the ledger was damaged: x", **here)
    await put(channel, b"[]", reason="lost", **here, **{"routing-key": "no.such.key"})
    await put(channel, b"[]", reason="of nowhere", **here)
    headers = {"job": late.id, "routing-key": topology.routing_keys(late)[0]}
    await put(channel, late.body(), reason="x", **here, **headers)
    ids = {row["reason"] if row["job"] is None else row["job"]: row["id"] for row in rows(ws, 5)}
    done = ws.run("pcm", "dead", "requeue", *ids.values())
    assert done.returncode == 1
    assert done.stdout.startswith(f"{ids.pop(good.id)}: sent again as ")
    problems = dict(line.removeprefix("pcm: ").split(": ", 1) for line in done.stderr.splitlines())
    assert "it expired at" in problems[ids[late.id]]
    assert "it is a notice, not an order" in problems[ids["the ledger was damaged: x"]]
    assert "no queue is bound" in problems[ids["lost"]]
    assert "original routing key is unknown" in problems[ids["of nowhere"]]
    assert {row["id"] for row in rows(ws, 4)} == set(ids.values())
    assert ws.run("pcm", "dead", "drop", *ids.values()).returncode == 0
    assert rows(ws, 0) == []


async def test_copies_of_a_letter_are_one(ws: Workstation, channel: AbstractChannel) -> None:
    """Their id is the same at each look, and another where body or origin differ."""
    where = {"workstation": ws.name, "reason": "x"}
    for _ in range(3):
        await put(channel, b"same", agent="service", at=datetime.now(UTC).isoformat(), **where)
    await put(channel, b"same", agent="interactive-ada", **where)
    await put(channel, b"other", agent="service", **where)
    # Without a login anyone may have named this workstation: no copy of one that has it.
    await put(channel, b"other", login=None, agent="service", **where)
    found = rows(ws, 4)
    assert sorted(row["count"] for row in found) == [1, 1, 1, 3]
    (unverified,) = [row["id"] for row in found if not row["verified"]]
    listed = ws.run("pcm", "dead", "list").stdout
    shown = ws.run("pcm", "dead", "show", unverified).stdout
    assert listed.count(f"{ws.name} (unverified)") == 1
    assert f"workstation   {ws.name} (unverified)\n" in shown
    assert {row["id"] for row in rows(ws, 4)} == {row["id"] for row in found}
    assert ws.run("pcm", "dead", "drop", *(row["id"] for row in found)).returncode == 0
    assert rows(ws, 0) == []


async def test_what_comes_back_while_it_is_sent_again_stays(
    settings: DispatcherSettings, node: Broker, ws: Workstation, channel: AbstractChannel
) -> None:
    """The agent rejects it again, and the new letter is stored before the old one is dropped."""
    await poison(node, ws, channel, b"unreadable")
    (row,) = rows(ws, 1)
    service = ws.start("service")
    async with DeadLetters.open(settings, keep_content=lambda known: known == row["id"]) as letters:
        letter = letters.find(row["id"])
        await letters.requeue(letter)
        service.wait_for("message.refused")
        await until_queue(node, topology.DEAD, ready=1)  # it logs before the letter is there
        await letters.drop(letter)
    (again,) = rows(ws, 1)
    assert (again["id"], again["count"]) == (row["id"], 1)
    assert again["at"] > row["at"]
    assert ws.run("pcm", "dead", "drop", row["id"]).returncode == 0


async def test_what_the_broker_gives_up_again_meanwhile_stays(
    settings: DispatcherSettings,
    dispatcher: Dispatcher,
    node: Broker,
    ws: Workstation,
    channel: AbstractChannel,
) -> None:
    """The broker's time of a dead letter has a resolution of one second."""
    assert ws.start("service").end() == 0
    await dispatcher.dispatch(ws.job("true", background=True))
    await give_up(ws, channel)
    (row,) = rows(ws, 1)
    async with DeadLetters.open(settings, keep_content=lambda known: known == row["id"]) as letters:
        letter = letters.find(row["id"])
        for _ in range(2):
            await letters.requeue(letter)
            await give_up(ws, channel)
        await until_queue(node, topology.DEAD, ready=2)
        await letters.drop(letter)
    (again,) = rows(ws, 1)
    assert (again["id"], again["count"]) == (row["id"], 2)
    assert ws.run("pcm", "dead", "drop", row["id"]).returncode == 0


async def test_letters_of_one_message_are_sent_again_once(
    dispatcher: Dispatcher, ws: Workstation, channel: AbstractChannel
) -> None:
    assert ws.start("service").end() == 0
    job = await dispatcher.dispatch(ws.job("true", background=True))
    await (await fetch(ws, channel)).ack()
    key, other_key = "no.such.key", f"background.optional.workstation.{ws.name}"
    for reason in "abc":
        here = {"workstation": ws.name, "agent": "service", "reason": reason}
        await put(channel, job.body(), **here)
        await put(channel, b"[]", **here, **{"routing-key": key if reason == "a" else other_key})
    letters = {row["id"]: row for row in rows(ws, 6)}
    done = ws.run("pcm", "dead", "requeue", *letters)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, "only one was sent by a key that reaches no queue"
    assert done.stdout.count(": sent again as ") == 2
    assert done.stdout.count(": the same message as ") == 3
    (left,) = rows(ws, 1)
    assert left["reason"] == "a"
    bodies = [(await fetch(ws, channel)) for _ in range(2)]
    assert {message.body for message in bodies} == {job.body(), b"[]"}
    for message in bodies:
        await message.ack()
    assert await take_all(channel, topology.queue_name(AgentKind.SERVICE, ws.name)) == []
    assert ws.run("pcm", "dead", "drop", left["id"]).returncode == 0


async def test_dropping_all_asks_back(own_node: Node, tmp_path: Path) -> None:
    ws = Workstation("ws-asked", own_node.url, tmp_path)
    settings = DispatcherSettings(amqp_url=(own_node.url,))
    words = (BIN / "pcm", "dead", "drop", "--all")
    nothing = OnTerminal(words, ws.environment)
    assert nothing.end() == 0
    assert nothing.screen.shown == ["no dead letters"]
    async with connect(settings, "test") as connection, connection.channel() as channel:
        await topology.ensure(connection)
        for number in range(2):
            await put(channel, b"%d" % number, reason="x", workstation=ws.name)
        assert ws.run("pcm", "dead", "drop", "--all").returncode == 2
        for answer, status, left in (("\n", 1, 2), ("y\n", 0, 1)):
            assert len(rows(ws, 2)) == 2
            terminal = OnTerminal(words, ws.environment)
            terminal.until(lambda text: "drop 2 letters? [y/N]" in text)
            if status == 0:  # what comes while the user thinks was not asked about
                await put(channel, b"2", reason="x", workstation=ws.name)
            terminal.type(answer)
            assert terminal.end() == status
            assert len(rows(ws, left)) == left
        assert ws.run("pcm", "dead", "drop", "--all", "--yes").returncode == 0


def test_wrong_use_and_unknown_letters(ws: Workstation) -> None:
    for words, status, message in (
        (["requeue"], 2, "ID"),
        (["drop"], 2, "ID"),
        (["drop", "--all", "abc"], 2, "ID"),
        (["drop", "--all"], 2, "--yes"),
        (["drop", "--yes", "abc"], 2, "--yes"),
        (["show"], 2, "ID"),
        ([], 2, "list"),
        (["show", "no"], 1, "'no': no such letter"),
        (["drop", ""], 1, "'': no such letter"),
        (["requeue", "no"], 1, "'no': no such letter"),
    ):
        done = ws.run("pcm", "dead", *words)
        assert (done.returncode, done.stdout) == (status, ""), words
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    nowhere = ws.run("pcm", "dead", "list", amqp_url="amqp://127.0.0.1:1/")
    assert nowhere.returncode == 3


async def test_many_looks_lose_nothing_and_do_not_disturb_each_other(
    own_node: Node, tmp_path: Path
) -> None:
    """Each listing is a delivery, and RabbitMQ drops messages that were delivered too often."""
    settings = DispatcherSettings(amqp_url=(own_node.url,))
    ws = Workstation("ws-own", own_node.url, tmp_path)
    empty = ws.run("pcm", "dead", "list")
    assert (empty.returncode, empty.stdout) == (0, "no dead letters\n")
    assert ws.run("pcm", "dead", "list", "--json").stdout == "[]\n"
    async with connect(settings, "test") as connection, connection.channel() as channel:
        for number in range(300):
            await put(channel, b"%d" % number, reason="x", workstation=ws.name)
        for _ in range(30):
            async with DeadLetters.open(settings) as letters:
                assert len(letters) == 300
        lists = [asyncio.to_thread(rows, ws, 300) for _ in range(4)]
        assert [len(found) for found in await asyncio.gather(*lists)] == [300] * 4
        async with DeadLetters.open(settings):
            busy = await asyncio.to_thread(ws.run, "pcm", "dead", "list")
        assert (busy.returncode, busy.stdout) == (1, "")
        assert busy.stderr == "pcm: another program is reading pcm.dead; try again\n"
        done = ws.run("pcm", "dead", "show", "")
        assert done.returncode == 1
        few = ws.run("pcm", "dead", "requeue", "--all")
        assert (few.returncode, len(few.stderr.splitlines())) == (1, 300)
        dropped = ws.run("pcm", "dead", "drop", "--all", "--yes")
        assert (dropped.returncode, len(dropped.stdout.splitlines())) == (0, 300)
        assert ws.run("pcm", "dead", "list").stdout == "no dead letters\n"


async def test_very_many_letters_are_listed_and_dropped(own_node: Node, tmp_path: Path) -> None:
    ws = Workstation("ws-many", own_node.url, tmp_path)
    settings = DispatcherSettings(amqp_url=(own_node.url,))
    async with Dispatcher.connect(settings), connect(settings, "test") as connection:
        async with connection.channel() as channel:
            numbers = range(10_000)
            bodies = (b"%d" % number + b"x" * 2000 for number in numbers)
            await asyncio.gather(*(put(channel, body, workstation=ws.name) for body in bodies))
        listed = ws.run("pcm", "dead", "list")
        assert len(listed.stdout.splitlines()) == 10_001
        async with DeadLetters.open(settings) as letters:
            kept = list(letters)
            assert not any(letter.body or letter.headers for letter in kept)
            with pytest.raises(UnknownLetter, match=r"matches \d+ letters"):
                letters.find(kept[0].id[0])
            await letters.drop(*kept[1:])
        async with DeadLetters.open(settings, keep_content=lambda _: True) as letters:
            (last,) = letters
            assert (last.id, last.size) == (kept[0].id, len(last.body or b""))
            with pytest.raises(NotRequeued, match="original routing key is unknown"):
                await letters.requeue(last)
            await letters.drop(last)


async def test_a_job_for_no_workstation_stays(own_node: Node, tmp_path: Path) -> None:
    ws = Workstation("ws-gone", own_node.url, tmp_path)
    settings = DispatcherSettings(amqp_url=(own_node.url,))
    body = ws.job("true", background=True).body()
    async with (
        Dispatcher.connect(settings),
        connect(settings, "test") as connection,
        connection.channel() as channel,
    ):
        await put(channel, body, workstation=ws.name)
        await put(channel, body.replace(b'"id"', b'"ident"'), workstation=ws.name)
    async with DeadLetters.open(settings, keep_content=lambda _: True) as letters:
        for letter in list(letters):
            # Without an id it would be another job at each reading: it is none.
            found = Job.read(letter.body or b"", tolerant=True)
            error = Unroutable if letter.body == found.body() else NotRequeued
            with pytest.raises(error):
                await letters.requeue(letter)
    async with DeadLetters.open(settings) as letters:
        assert len(letters) == 2
        await letters.drop(*letters)


@pytest.mark.full
def test_a_broker_that_does_not_answer_is_out_of_reach(ws: Workstation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
        done = ws.run("pcm", "dead", "list", amqp_url=url)
    assert done.returncode == 3
    assert "no answer in 10 s" in done.stderr


async def test_the_broker_ends_what_cannot_be_delivered_as_a_letter(
    ws: Workstation, channel: AbstractChannel
) -> None:
    """By the delivery limit of an agent's queue, not by a rejection."""
    assert ws.start("service").end() == 0
    name = topology.queue_name(AgentKind.SERVICE, ws.name)
    exchange = await channel.get_exchange(topology.JOBS)
    key = f"background.optional.workstation.{ws.name}"
    await exchange.publish(aio_pika.Message(b"{}", type="job", user_id="guest"), key)
    for _ in range(21):
        await (await fetch(ws, channel)).reject(requeue=True)
    (row,) = rows(ws, 1)
    assert "too often" in row["reason"]
    shown = ws.run("pcm", "dead", "show", row["id"])
    assert f"queue         {name}\n" in shown.stdout
    assert ws.run("pcm", "dead", "drop", row["id"]).returncode == 0
