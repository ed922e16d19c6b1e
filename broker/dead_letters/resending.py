"""Send dead letters again."""

from collections.abc import Iterable
from contextlib import aclosing

from aio_pika.abc import HeadersType

from broker.amqp import topology
from broker.amqp.publisher import Publisher
from broker.client.follow import earliest_record_time
from broker.client.publishing import resend_header, resend_job
from broker.dead_letters.letter import Letter
from broker.stream import stream
from schemas import InvalidMessage, Job
from schemas.errors import PcmError
from schemas.orders.signature import HEADER

LEDGER, FORGERY = "ledger", "forgery"
"""The kinds of notices: of a damaged ledger, and of entries that the history rejected."""


class NotRequeued(PcmError):
    """A letter cannot be sent again, and stays in the queue; the message says why."""


async def resend(publisher: Publisher, letter: Letter) -> tuple[str, ...]:
    """Send a letter again; return when the broker has stored the new message.

    A job is sent to all its targets; agents that have it ignore it. Other messages are sent with
    their original routing key.

    Returns:
        The routing keys.

    Raises:
        NotRequeued: it is not an order, or has expired.
        Unroutable: no queue is bound for its routing key.
        Unreachable: it may have been sent; it is safe to send it again.
    """
    body = _body(letter)
    if letter.kind == LEDGER:
        raise NotRequeued("it is a notice, not an order; read it, then drop it")
    if letter.kind == FORGERY:
        raise NotRequeued("it was rejected by the history; read it, then drop it")
    job = _job(body)
    # An agent could have forged it, and requeuing publishes it with an administrator's login.
    if not _is_trusted(letter) and not (job and await _is_on_record(publisher, job, body)):
        sender = letter.login or "a publisher without a login"
        raise NotRequeued(
            f"it was published by {sender}, and there is no record that it was sent; send the job"
            " again instead"
        )
    if job is not None:
        try:
            await resend_job(publisher, job, body, _signed(letter))
        except ValueError as error:
            raise NotRequeued(f"{error}; drop it") from error
        return topology.routing_keys(job)
    if not letter.routing_key:
        raise NotRequeued("its original routing key is unknown; drop it")
    await publisher.publish(
        topology.JOBS,
        letter.routing_key,
        body,
        kind=letter.kind,
        message_id=letter.message_id or None,
        headers={**resend_header(), **_signed(letter)},
        unroutable_fails=True,
        content_type=letter.content_type,
    )
    return (letter.routing_key,)


def by_message(letters: Iterable[Letter]) -> list[list[Letter]]:
    """Group letters that are copies of one message, which several agents have rejected.

    Messages that are not jobs are grouped by routing key, too.
    """
    groups: dict[tuple[str, bytes, str, str], list[Letter]] = {}
    for letter in letters:
        body = _body(letter)
        key = letter.routing_key if _job(body) is None else ""
        signed = str(_signed(letter))  # an unsigned copy is another message
        groups.setdefault((letter.kind, body, key, signed), []).append(letter)
    return list(groups.values())


def _is_trusted(letter: Letter) -> bool:
    return bool(letter.login) and topology.agent_of_login(letter.login) is None


async def _is_on_record(publisher: Publisher, job: Job, body: bytes) -> bool:
    """Whether the stream has a job with exactly this body, from a login that may send jobs."""
    entries = stream.read_all(publisher.connection, publisher, earliest_record_time(job.id))
    async with aclosing(entries):
        async for entry in entries:
            if entry.kind == job.kind and entry.body == body and job in entry.records():
                return True
    return False


def _signed(letter: Letter) -> HeadersType:
    """Return the signature headers of a letter's message."""
    return {HEADER: letter.headers[HEADER]} if HEADER in letter.headers else {}


def _body(letter: Letter) -> bytes:
    if letter.body is None:
        raise ValueError(f"{letter.id}: was read without its content")
    return letter.body


def _job(body: bytes) -> Job | None:
    """Return the job in a body, as an agent reads it; None if it is not a job."""
    try:
        job = Job.read(body, tolerant=True)
    except InvalidMessage:
        return None
    # A generated id would make another job at each reading.
    return job if {"kind", "id"} <= job.model_fields_set else None
