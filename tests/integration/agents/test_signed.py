"""A stolen password of the broker is not enough: orders count only if trusted keys signed them.

The attacker here is guest: they may publish, bind, read and purge everything.
"""

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import DeliveryMode, Message
from aio_pika.abc import AbstractChannel, AbstractConnection

from broker import Dispatcher, DispatcherSettings
from broker.amqp import topology
from broker.amqp.connection import connect
from broker.amqp.publisher import Publisher
from broker.amqp.topology import AgentKind
from broker.signing.signer import Signer, signature_headers
from broker.stream import stream
from broker.stream.entry import StreamEntry
from schemas import Cancellation, Job, Pause, State, group
from tests.faults.test_poison import letters
from tests.support.keys import Keys
from tests.support.waiting import LIMIT
from tests.support.workstation import Workstation, final, follow


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


@pytest.fixture
async def attacker(settings: DispatcherSettings) -> AsyncIterator[AbstractChannel]:
    """A channel opened with a stolen password."""
    async with await aio_pika.connect(settings.amqp_url[0]) as connection:
        yield await connection.channel()


async def publish(
    channel: AbstractChannel,
    order: Job | Cancellation | Pause,
    *signers: Signer,
    key: str | None = None,
    exchange: str = topology.JOBS,
    body: bytes | None = None,
    **properties: Any,
) -> None:
    """Publish a message as it never left a dispatcher."""
    headers = signature_headers(tuple(signer.sign(order) for signer in signers))
    if isinstance(order, Pause):
        key = topology.pause_key(order.workstation)
    elif isinstance(order, Job):
        key = key or topology.routing_keys(order)[0]
    message = Message(
        order.body() if body is None else body,
        headers={**headers, **properties},
        delivery_mode=DeliveryMode.PERSISTENT,
        type=order.kind,
        message_id=getattr(order, "id", None),
    )
    found = await channel.get_exchange(exchange, ensure=False) if exchange else None
    await (found or channel.default_exchange).publish(message, key or "")


def signing(settings: DispatcherSettings, path: Path) -> DispatcherSettings:
    """Return a dispatcher's settings that sign."""
    return settings.model_copy(update={"signing_key": path})


async def test_no_forged_or_replayed_job_is_run(
    ws: Workstation, keys: Keys, settings: DispatcherSettings, attacker: AbstractChannel
) -> None:
    """Each attack is dead-lettered with the reason; a correctly signed job runs once."""
    ada, eve = keys.trust("ada"), keys.make("eve")
    now = datetime.now(UTC)
    old = keys.trust("old", not_after=now - timedelta(days=1))
    narrow = keys.trust("narrow", commands=("df",), shell=False)
    office = keys.trust("office", targets=(group("office"),))
    service = ws.start("service", trusted_keys=str(keys.folder))
    ran = ws.folder / "ran"

    def job(**fields: Any) -> Job:
        return ws.job("touch", str(ran), **{"background": True, **fields})

    queue = topology.queue_name(AgentKind.SERVICE, ws.name)
    other = Workstation("another-one", "", ws.folder)
    elsewhere = other.job("touch", str(ran), background=True)
    office_job = job().model_copy(update={"targets": (group("office"),)})
    await (await attacker.get_queue(queue, ensure=False)).bind(
        topology.JOBS, topology.routing_keys(office_job)[0]
    )
    altered = job()
    attacks: list[tuple[Job, tuple[Signer, ...], str, dict[str, Any]]] = [
        (job(), (), "it is not signed", {}),
        (job(), (eve,), "is not trusted", {}),
        (job(), (old,), "is not valid after", {}),
        (job(), (narrow,), "may not order 'touch'", {}),
        (job(), (office,), "may order only group:office", {}),
        (job(created_at=now - timedelta(days=100)), (ada,), "over 90d ago", {}),
        (
            altered,
            (ada,),
            "not of this message",
            {"body": altered.body().replace(b"touch", b"chmod")},
        ),
        (job(), (), "is not a list of signatures", {"signatures": ["ada"]}),
        (
            elsewhere,
            (ada,),
            "routing key",
            {"key": f"background.optional.workstation.{ws.name}"},
        ),
        (elsewhere, (ada,), "routing key", {"exchange": "", "key": queue}),
        (office_job, (ada,), "not for this workstation", {}),
    ]
    for attack, signers, _, how in attacks:
        await publish(attacker, attack, *signers, **how)
    async with Dispatcher.connect(signing(settings, keys.private["ada"])) as dispatcher:
        good = await dispatcher.dispatch(ws.job("true", background=True))
        assert final(await follow(dispatcher, good)).state is State.SUCCEEDED
        async with connect(settings, "test") as connection:
            found = await letters(connection, ws, len(attacks))
            reasons = sorted(str(letter.headers["reason"]) for letter in found)
            for _, _, reason, _ in attacks:
                match = next((given for given in reasons if reason in given), None)
                assert match is not None, (reason, reasons)
                reasons.remove(match)
            # What went over the wire is anyone's to read, and to send again.
            (message,) = [
                entry async for entry in _entries(connection) if entry.message_id == good.id
            ]
        for exchange, key in ((topology.JOBS, topology.routing_keys(good)[0]), ("", queue)):
            replay = Message(message.body, headers={"signatures": message.signatures}, type="job")
            there = (
                await attacker.get_exchange(exchange, ensure=False)
                if exchange
                else attacker.default_exchange
            )
            await there.publish(replay, key)
        last = await dispatcher.dispatch(ws.job("true", background=True))
        assert final(await follow(dispatcher, last)).state is State.SUCCEEDED
        started = [event["job"] for event in service.events("job.started")]
        assert started == [good.id, last.id]
        refused = await follow(dispatcher, attacks[0][0])
        assert final(refused).state is State.REFUSED
    assert not ran.exists()


async def _entries(connection: AbstractConnection) -> AsyncIterator[StreamEntry]:
    async for entry in stream.read_all(connection, await Publisher.open(connection), None):
        yield entry


async def test_a_signature_can_neither_be_left_out_nor_given_twice(
    ws: Workstation, keys: Keys, dispatcher: Dispatcher, attacker: AbstractChannel
) -> None:
    """PCM_APPROVALS: two people have to sign."""
    ada, bob = keys.trust("ada"), keys.trust("bob")
    ws.start("service", trusted_keys=str(keys.folder), approvals="1")
    jobs = [ws.job("true", background=True) for _ in range(3)]
    for job, signers in zip(jobs, ([ada], [ada, ada], [bob, ada]), strict=True):
        await stream_record(dispatcher, job)
        await publish(attacker, job, *signers)
    states = [final(await follow(dispatcher, job)).state for job in jobs]
    assert states == [State.REFUSED, State.REFUSED, State.SUCCEEDED]


async def stream_record(dispatcher: Dispatcher, job: Job, *signers: Signer) -> None:
    """Put a job on record, so that it can be followed."""
    headers = signature_headers(tuple(signer.sign(job) for signer in signers))

    async def work(publisher: Publisher) -> None:
        key = f"job.{job.id}"
        await stream.append(
            publisher, key, job.body(), kind="job", message_id=job.id, headers=headers
        )

    await dispatcher.retry(work)


async def test_cancellations_and_pauses_are_heeded_only_if_they_are_signed(
    ws: Workstation, keys: Keys, settings: DispatcherSettings, attacker: AbstractChannel
) -> None:
    keys.trust("ada")
    service = ws.start("service", trusted_keys=str(keys.folder))
    async with Dispatcher.connect(signing(settings, keys.private["ada"])) as dispatcher:
        job = await dispatcher.dispatch(ws.job("sleep", "600", background=True))
        service.wait_for("job.started")
        key = topology.routing_keys(job)[0]
        await publish(attacker, Cancellation(job_id=job.id), key=key)
        await publish(attacker, Pause(workstation=ws.name, paused=True))
        service.wait_for("message.refused", 2)
        quick = await dispatcher.dispatch(ws.job("true", background=True))
        assert final(await follow(dispatcher, quick)).state is State.SUCCEEDED
        assert not service.events("agent.paused")
        paused = ws.run("pcm", "pause", ws.name, signing_key=str(keys.private["ada"]))
        assert paused.returncode == 0, paused.stderr
        service.wait_for("agent.paused")
        await dispatcher.cancel(job.id)
        assert final(await follow(dispatcher, job)).state is State.CANCELLED


async def test_a_lost_ledger_is_not_made_good_from_a_forged_record(
    ws: Workstation, keys: Keys, settings: DispatcherSettings
) -> None:
    """The stream has the accepted jobs, and each login that may publish can write into it.

    The same with an old, correctly signed order of which no record remains.
    """
    chief = keys.trust("ada")
    service = ws.start("service", trusted_keys=str(keys.folder))
    due = datetime.now(UTC) + timedelta(seconds=1)
    forged = ws.job("touch", str(ws.folder / "forged"), background=True, mandatory_at=due)
    past = datetime.now(UTC) - timedelta(days=100)
    replayed = ws.job("touch", str(ws.folder / "replayed"), background=True, created_at=past)
    async with Dispatcher.connect(signing(settings, keys.private["ada"])) as dispatcher:
        ws.run("pcm", "pause", ws.name, signing_key=str(keys.private["ada"]))
        service.wait_for("agent.paused")
        good = await dispatcher.dispatch(
            ws.job("touch", str(ws.folder / "good"), background=True, mandatory_at=due)
        )
        service.wait_for("job.received")
        await stream_record(dispatcher, forged)
        await stream_record(dispatcher, replayed, chief)
        service.end()
        for file in (ws.state_dir / "service").glob("ledger.db*"):
            file.write_bytes(b"x" * 10_000) if file.name == "ledger.db" else file.unlink()
        again = ws.start("service", trusted_keys=str(keys.folder))
        assert final(await follow(dispatcher, good)).state is State.SUCCEEDED
    assert (ws.folder / "good").exists()
    for word in ("forged", "replayed"):
        assert not (ws.folder / word).exists()
    assert len(again.events("job.started")) == 1
    reasons = [event["reason"] for event in again.events("stream.untrusted")]
    assert "it is not signed" in reasons
    assert any("over 90d ago" in reason for reason in reasons)


async def test_a_dead_letter_keeps_its_signatures_when_it_is_sent_again(
    ws: Workstation, keys: Keys, settings: DispatcherSettings, attacker: AbstractChannel
) -> None:
    keys.make("ada")
    (keys.folder / "none.pub").write_text("")
    service = ws.start("service", trusted_keys=str(keys.folder))
    sent = ws.job("true", background=True)
    seen = await attacker.declare_queue(exclusive=True)
    await seen.bind(topology.JOBS, topology.routing_keys(sent)[0])
    async with Dispatcher.connect(signing(settings, keys.private["ada"])) as dispatcher:
        await dispatcher.dispatch(sent)
        assert final(await follow(dispatcher, sent)).state is State.REFUSED
    assert len(service.events("key.unusable")) == 1
    listed = ws.run("pcm", "dead", "list", "--json")
    (letter,) = [row for row in json.loads(listed.stdout) if row["workstation"] == ws.name]
    done = ws.run("pcm", "dead", "requeue", letter["id"])
    assert done.returncode == 0, done.stderr
    first, again = [await seen.get(timeout=LIMIT) for _ in range(2)]
    assert again.headers["signatures"] == first.headers["signatures"] != ""
    assert again.body == first.body


@pytest.mark.parametrize(
    ("settings_of", "said"),
    [
        (lambda keys: {"trusted_keys": str(keys.folder / "no")}, "PCM_TRUSTED_KEYS: "),
        (lambda _: {"approvals": "1"}, "PCM_APPROVALS: need signatures"),
    ],
    ids=["no folder", "no keys"],
)
def test_an_agent_does_not_start_without_the_keys_that_it_should_have(
    ws: Workstation, keys: Keys, settings_of: Callable[[Keys], dict[str, str]], said: str
) -> None:
    done = ws.run("pcm-agent", "service", **settings_of(keys))
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
