"""The login of an enrolled agent can report for that agent, and for no other."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aio_pika
import pamqp.frame
import pytest
from aio_pika.abc import AbstractConnection, HeadersType
from aio_pika.exceptions import ChannelClosed
from yarl import URL

from broker import Dispatcher, DispatcherSettings, Progress
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.amqp.topology import AgentKind
from broker.client.follow import UnknownJob
from broker.settings import BrokerSettings
from broker.stream import stream
from schemas import (
    Cancellation,
    Command,
    Job,
    RejectedRecord,
    Report,
    Schedule,
    State,
    WorkstationForgotten,
    everyone,
    workstation,
)
from tests.support.admin import Admin, check_in, ended, report
from tests.support.rabbitmq import Broker

HERE, VICTIM = "ws-1", "ws-2"


@dataclass(frozen=True)
class Site:
    """A broker with the topology, an administrator, and two enrolled agents of one workstation."""

    url: str

    def url_of(self, login: str) -> str:
        """Return the address as an agent has it."""
        return str(URL(self.url).with_user(login).with_password("secret"))


@pytest.fixture(scope="module")
def site(node: Broker) -> Iterator[Site]:
    if not node.management_url:
        pytest.skip("PCM_TEST_MANAGEMENT_URL: where is the given broker's management API?")
    management = node.management()
    name = f"forged-{os.getpid()}"
    logins = [
        topology.login(AgentKind.SERVICE, HERE),
        topology.login(AgentKind.INTERACTIVE, HERE, "ada"),
    ]
    management.put("vhosts", name, body={})
    try:
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        management.put("permissions", name, "guest", body=everything)
        # There has to be an exchange before there are rights to its keys.
        exchange = {"type": "topic", "durable": True}
        management.put("exchanges", name, "pcm.reports", body=exchange)
        for login in logins:
            agent = login.partition("@")[0]
            queue = topology.queue_name(AgentKind.SERVICE, HERE)
            management.put("users", login, body={"password": "secret", "tags": ""})
            rights = {"configure": "^$", "write": r"^pcm\.reports$", "read": f"^{queue}$"}
            management.put("permissions", name, login, body=rights)
            own = rf"^[a-z_]+\.{HERE}\.{agent}$"
            keys = {"exchange": "pcm.reports", "write": own, "read": "^$"}
            management.put("topic-permissions", name, login, body=keys)
        yield Site(str(URL(node.url).with_path(f"/{name}")))
    finally:
        for login in logins:
            management.delete("users", login)
        management.delete("vhosts", name)


@pytest.fixture
async def dispatcher(site: Site) -> AsyncIterator[Dispatcher]:
    settings = DispatcherSettings(amqp_url=(site.url,))
    async with Dispatcher.connect(settings) as connected:
        yield connected


@pytest.fixture
async def agent(site: Site, dispatcher: Dispatcher) -> AsyncIterator[AbstractConnection]:
    """A connection with the service agent's password."""
    assert dispatcher  # the topology is there
    # No heartbeats: programs that run in this process keep its event loop from answering them.
    url = f"{site.url_of('service@ws-1')}?heartbeat=0"
    async with connect(BrokerSettings(amqp_url=(url,)), "an attacker") as connection:
        yield connection


@pytest.fixture
def admin(site: Site, tmp_path: Path) -> Iterator[Admin]:
    one = Admin(site.url, tmp_path)
    yield one
    assert one.run("dead", "drop", "--all", "--yes").returncode == 0


def letters(admin: Admin) -> list[dict[str, Any]]:
    listed = admin.run("dead", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    found: list[dict[str, Any]] = json.loads(listed.stdout)
    return found


def new_job() -> Job:
    return Job(command=Command(argv=("true",), background=True), targets=(everyone,))


def key(state: str, agent: str = "service") -> str:
    return topology.report_key(state, HERE, agent)


@pytest.mark.full
async def test_what_another_tells_of_a_workstation_counts_nowhere(
    agent: AbstractConnection, dispatcher: Dispatcher, admin: Admin
) -> None:
    job = new_job().model_copy(update={"targets": (workstation(HERE), workstation(VICTIM))})
    await admin.append([check_in(HERE), check_in(VICTIM)])
    await admin.append([job])
    made_up = new_job()
    mine, theirs = ended(job, HERE), ended(job, VICTIM)
    by_ada = mine.model_copy(update={"agent": "interactive-ada"})
    schedule = Schedule(name="evil", repeat="* * * * *", job=made_up)
    forged: list[tuple[str, str, bytes]] = [
        ("report", "succeeded", theirs.body()),
        ("report", "succeeded", b"\n".join([mine.body(), theirs.body()])),
        ("report", "succeeded", by_ada.body()),
        ("report", "received", mine.body()),
        ("check_in", "check_in", check_in(VICTIM, "lab").body()),
        ("check_in", "received", check_in(HERE).body()),
        ("job", "received", made_up.body()),
        ("cancellation", "received", Cancellation(job_id=job.id).body()),
        ("departure", "received", WorkstationForgotten(workstation=VICTIM).body()),
        ("schedule", "received", schedule.body()),
        ("forgery", "received", RejectedRecord(digest="0" * 32).body()),
        ("mark", "received", b""),
        ("", "received", mine.body()),
    ]
    publisher = await Publisher.open(agent)
    for kind, state, body in forged:
        await publisher.publish("pcm.reports", key(state), body, kind=kind, message_id=made_up.id)
    channel = await agent.channel()
    exchange = await channel.get_exchange("pcm.reports", ensure=False)
    nameless = aio_pika.Message(theirs.body(), type="report")
    await exchange.publish(nameless, key("succeeded"))

    async def shown() -> list[tuple[str, str]]:
        done = await asyncio.to_thread(admin.run, "show", job.id, "--json")
        assert done.returncode == 0, done.stderr
        return [
            (row["workstation"], row["state"]) for row in json.loads(done.stdout)["workstations"]
        ]

    assert await shown() == [(HERE, "queued"), (VICTIM, "queued")]
    count = len(forged) + 1
    status = json.loads(admin.run("history", "status", "--json").stdout)
    assert status["rejected"] == count
    assert f"{count} entries, not counted" in admin.run("history", "status").stdout
    assert "evil" not in admin.run("schedule", "list").stdout
    assert admin.run("show", made_up.id).returncode == 1
    listed = admin.run("workstations", "--json").stdout
    assert {row["workstation"] for row in json.loads(listed)} == {HERE, VICTIM}
    assert "lab" not in admin.run("groups").stdout

    with pytest.raises(UnknownJob):
        await dispatcher.cancel(made_up.id)
    with pytest.raises(UnknownJob):
        async for _ in dispatcher.follow(made_up.id):
            pass

    # The agent's own report counts, and so does another agent's, in spite of the forgeries.
    await publisher.publish("pcm.reports", key("succeeded"), mine.body(), kind="report")
    await admin.append([theirs])
    progress = Progress(job.id)
    assert {one.workstation async for one in dispatcher.follow(job.id, progress)} == {HERE, VICTIM}
    assert await shown() == [(HERE, "succeeded"), (VICTIM, "succeeded")]

    # To send a forged job again would be to run it as an administrator.
    (job_letter,) = [row for row in letters(admin) if "published a job" in row["reason"]]
    done = admin.run("dead", "requeue", job_letter["id"])
    assert (done.returncode, "rejected by the history" in done.stderr) == (1, True)
    assert made_up.id in admin.run("dead", "show", job_letter["id"]).stdout


@pytest.mark.full
async def test_a_report_counts_only_from_an_agent_that_can_have_the_job(
    site: Site, dispatcher: Dispatcher, agent: AbstractConnection, admin: Admin
) -> None:
    """A user's login cannot report background jobs, nor a workstation others' jobs."""
    own, others = (
        new_job().model_copy(update={"id": f"{word}-{os.getpid()}", "targets": targets})
        for word, targets in (
            ("own", (workstation(HERE),)),
            ("others", (workstation(VICTIM),)),
        )
    )
    await admin.append([check_in(HERE), check_in(VICTIM)])
    await admin.append([own, others])
    settings = BrokerSettings(amqp_url=(site.url_of("interactive-ada@ws-1"),))
    by_ada = ended(own, HERE).model_copy(update={"agent": "interactive-ada"})
    async with connect(settings, "a user") as connection:
        publisher = await Publisher.open(connection)
        await publisher.publish(
            "pcm.reports", key("succeeded", "interactive-ada"), by_ada.body(), kind="report"
        )
    by_service = await Publisher.open(agent)
    await by_service.publish(
        "pcm.reports", key("succeeded"), ended(others, HERE).body(), kind="report"
    )

    def shown(job: Job) -> list[tuple[str, str]]:
        done = admin.run("show", job.id, "--json")
        assert done.stderr == ""
        rows = json.loads(done.stdout)["workstations"]
        return [(row["workstation"], row["state"]) for row in rows]

    assert (shown(own), shown(others)) == ([(HERE, "queued")], [(VICTIM, "queued")])
    why = (f"interactive-ada of {HERE} cannot have a background job", f"it is not for {HERE}")
    assert {row["reason"] for row in letters(admin)} == {
        f"rejected by the history: succeeded of {job.id} was reported: {reason}"
        for job, reason in zip((own, others), why, strict=True)
    }
    # What the service then says is what watch waits for, and its exit status.
    await by_service.publish(
        "pcm.reports", key("failed"), ended(own, HERE, 1).body(), kind="report"
    )
    watched = await asyncio.to_thread(admin.run, "watch", own.id)
    assert (watched.returncode, "succeeded" in watched.stdout) == (1, False)
    assert shown(own) == [(HERE, "failed")]
    waited = await dispatcher.wait(own.id)
    assert (waited.succeeded, waited.counts) == (False, {State.FAILED: 1})


async def test_each_forgery_is_one_letter_for_any_number_of_readers(
    agent: AbstractConnection, dispatcher: Dispatcher, admin: Admin, tmp_path: Path
) -> None:
    assert dispatcher
    job = new_job()
    publisher = await Publisher.open(agent)
    for name in (VICTIM, "ws-3", "ws-3"):  # the last of them twice
        body = report(job, name, State.RECEIVED).body() if name == VICTIM else b"{}"
        await publisher.publish("pcm.reports", key("received"), body, kind="departure")
    assert admin.run("jobs").returncode == 0
    rows = letters(admin)
    assert len(rows) == 2
    assert {row["count"] for row in rows} == {1}
    assert {(row["workstation"], row["agent"]) for row in rows} == {(HERE, "service")}
    assert {row["reason"] for row in rows} == {
        "rejected by the history: service@ws-1 published a departure"
    }

    # Another administrator's history, and a new one, publish no second letter.
    (tmp_path / "other").mkdir()
    other = Admin(admin.url, tmp_path / "other")
    assert other.run("jobs").returncode == 0
    assert admin.run("history", "rebuild", "--yes").returncode == 0
    counts = {
        json.loads(one.run("history", "status", "--json").stdout)["rejected"]
        for one in (admin, other)
    }
    assert len(counts) == 1
    assert [row["id"] for row in letters(admin)] == [row["id"] for row in rows]
    # Nor do those who come when the letters were dropped, or what was forged is said again.
    assert admin.run("dead", "drop", "--all", "--yes").returncode == 0
    await publisher.publish("pcm.reports", key("received"), b"{}", kind="departure")
    for one in (admin, other):
        assert one.run("jobs").returncode == 0
        after = json.loads(one.run("history", "status", "--json").stdout)["rejected"]
        assert after == counts.copy().pop() + 1
    assert letters(admin) == []


async def test_no_report_keeps_that_of_another_workstation_from_being_seen(
    agent: AbstractConnection, dispatcher: Dispatcher, admin: Admin
) -> None:
    job = new_job().model_copy(update={"targets": (workstation(HERE), workstation(VICTIM))})
    await admin.append([job])
    theirs = ended(job, VICTIM, exit_code=3)
    mine = ended(job, HERE).model_copy(update={"id": theirs.id})
    publisher = await Publisher.open(agent)
    await publisher.publish("pcm.reports", key("succeeded"), mine.body(), kind="report")
    await admin.append([theirs])
    progress = Progress(job.id)
    seen: list[Report] = [one async for one in dispatcher.follow(job.id, progress)]
    assert {(one.workstation, one.state) for one in seen} == {
        (HERE, State.SUCCEEDED),
        (VICTIM, State.FAILED),
    }


async def test_the_broker_refuses_the_login_of_another(agent: AbstractConnection) -> None:
    for name in ("guest", "interactive-ada@ws-1", "service@ws-2"):
        channel = await agent.channel()
        exchange = await channel.get_exchange("pcm.reports", ensure=False)
        message = aio_pika.Message(b"{}", type="report", user_id=name)
        with pytest.raises(ChannelClosed, match="user_id"):
            await exchange.publish(message, key("received"))


async def test_a_job_that_an_agent_made_up_is_not_sent_again(
    agent: AbstractConnection, dispatcher: Dispatcher, admin: Admin
) -> None:
    await admin.declare(HERE)
    sent = await dispatcher.dispatch(new_job())
    made_up = new_job()
    publisher = await Publisher.open(agent)
    for job in (made_up, sent):
        headers: HeadersType = {
            "reason": "could not be read",
            "routing-key": "background.optional.all",
            "workstation": VICTIM,
            "agent": "service",
            "job": job.id,
            "at": datetime.now(UTC).isoformat(),
        }
        await publisher.publish(
            "pcm.reports", key("dead"), job.body(), kind="job", message_id=job.id, headers=headers
        )
    await publisher.publish(
        "pcm.reports", key("dead"), b"[]", kind="pause", headers=headers | {"job": "a pause"}
    )
    found = {row["job"]: row for row in letters(admin)}
    # It is shown with the login that published it, whatever its content says.
    assert {row["workstation"] for row in found.values()} == {HERE}
    refused = admin.run("dead", "requeue", found[made_up.id]["id"], found["a pause"]["id"])
    assert refused.returncode == 1
    assert refused.stderr.count("it was published by service@ws-1, and there is no record") == 2
    again = admin.run("dead", "requeue", found[sent.id]["id"])
    assert "sent again as background.optional.all" in again.stdout, again.stderr


async def test_an_agent_whose_ledger_is_damaged_takes_up_no_forged_job(
    agent: AbstractConnection, site: Site
) -> None:
    job = new_job()
    publisher = await Publisher.open(agent)
    await publisher.publish("pcm.reports", key("received"), job.body(), kind="job")
    async with connect(BrokerSettings(amqp_url=(site.url,)), "test") as connection:
        entries = stream.read_all(connection, await Publisher.open(connection), None)
        read = [record async for entry in entries for record in entry.records()]
    assert job not in read


@pytest.mark.usefixtures("dispatcher")
async def test_properties_that_are_no_text_do_not_block_later_messages(
    site: Site, admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    marshal = pamqp.frame.marshal

    def spoilt(frame: Any, channel: int) -> bytes:
        data = marshal(frame, channel)
        return data.replace(b"\0\0\0\0BADB", b"\x7f" * 8).replace(b"BAD", b"\xff\xfe\xfd")

    monkeypatch.setattr("pamqp.frame.marshal", spoilt)
    deep: dict[str, Any] = {}
    for _ in range(400):  # each is read by three calls of the library
        deep = {"a": deep}
    never = datetime.fromtimestamp(int.from_bytes(b"BADB"), UTC)
    spoils: list[dict[str, Any]] = [
        {"type": "BAD"},
        {"correlation_id": "BAD", "app_id": "BAD", "message_id": "BAD"},
        {"timestamp": never},
        {"headers": {"BAD": "x"}},
        {"headers": {"x": "BAD", "when": never, "all": [never, {"BAD": never}]}},
        {"headers": deep},
    ]
    assert admin.run("jobs").returncode == 0  # reads what other tests forged
    there = len(letters(admin))
    before = json.loads(admin.run("history", "status", "--json").stdout)["next_offset"]
    connection = await aio_pika.connect(site.url_of("service@ws-1"))
    async with connection, connection.channel() as channel:
        exchange = await channel.get_exchange("pcm.reports", ensure=False)
        for number, spoil in enumerate(spoils):
            for word in ("received", "dead"):
                body = f"{number} {word}".encode()
                message = aio_pika.Message(body, user_id="service@ws-1", **spoil)
                await exchange.publish(message, key(word))
    job = new_job()
    await admin.append([job])
    assert admin.run("show", job.id).returncode == 0
    status = json.loads(admin.run("history", "status", "--json").stdout)
    assert status["next_offset"] >= before + len(spoils) + 1
    assert len(letters(admin)) == there + 2 * len(spoils)  # one to the stream is forged
