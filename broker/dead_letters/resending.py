"""How letters are sent again."""

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
from schemas.signature import HEADER

LEDGER, FORGERY = "ledger", "forgery"
"""The kinds of letters that only tell of a damaged ledger, and of what was not believed."""


class NotRequeued(PcmError):
    """A letter cannot be sent again; the text says why. It stays."""


async def resend(publisher: Publisher, letter: Letter) -> tuple[str, ...]:
    """Send a letter again; when this returns, the broker has stored the new message.

    A job goes to all that it is for: who has it already takes it for the same job. Whatever
    else goes where it was sent at first.

    Returns:
        The routing keys.

    Raises:
        NotRequeued: it is no order, or has expired.
        Unroutable: no queue is bound to its routing key.
        Unreachable: whether it was sent is not known; sending it again does no harm.
    """
    body = _body(letter)
    if letter.kind == LEDGER:
        raise NotRequeued("it is a notice and no order; read it, then drop it")
    if letter.kind == FORGERY:
        raise NotRequeued("it is forged; read it, then drop it")
    job = _job(body)
    # An agent could have made it up, and an administrator would send it with an own login.
    if not _is_trusted(letter) and not (job and await _is_on_record(publisher, job, body)):
        who = letter.login or "somebody without a login"
        raise NotRequeued(
            f"{who} put it there, and that it was ever sent is not on record; send it anew"
        )
    if job is not None:
        try:
            await resend_job(publisher, job, body, _signed(letter))
        except ValueError as error:
            raise NotRequeued(f"{error}; drop it") from error
        return topology.routing_keys(job)
    if not letter.routing_key:
        raise NotRequeued("it does not tell where it was sent at first; drop it")
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
    """Return letters together that are of one message, which several could not read or take.

    What is no job goes where it was sent at first: who was sent it by another key has another.
    """
    found: dict[tuple[str, bytes, str, str], list[Letter]] = {}
    for letter in letters:
        body = _body(letter)
        key = letter.routing_key if _job(body) is None else ""
        signed = str(_signed(letter))  # a copy that is not signed is not the same
        found.setdefault((letter.kind, body, key, signed), []).append(letter)
    return list(found.values())


def _is_trusted(letter: Letter) -> bool:
    return bool(letter.login) and topology.agent_of_login(letter.login) is None


async def _is_on_record(publisher: Publisher, job: Job, body: bytes) -> bool:
    """Whether the stream has a job, as it stands in `body`, from somebody who may send jobs."""
    entries = stream.read_all(publisher.connection, publisher, earliest_record_time(job.id))
    async with aclosing(entries):
        async for entry in entries:
            if entry.kind == job.kind and entry.body == body and job in entry.records():
                return True
    return False


def _signed(letter: Letter) -> HeadersType:
    """Return the headers by which a letter's message is trusted, as they came."""
    return {HEADER: letter.headers[HEADER]} if HEADER in letter.headers else {}


def _body(letter: Letter) -> bytes:
    if letter.body is None:
        raise ValueError(f"{letter.id}: was not read as a whole")
    return letter.body


def _job(body: bytes) -> Job | None:
    """Return the job that a body is, as an agent would read it; None where it is none."""
    try:
        job = Job.read(body, tolerant=True)
    except InvalidMessage:
        return None
    # An id that was made up just now would be another job at each reading.
    return job if {"kind", "id"} <= job.model_fields_set else None
