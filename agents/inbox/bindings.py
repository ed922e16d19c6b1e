"""Removes obsolete bindings of the agent's queue."""

from collections.abc import Collection

from aio_pika.abc import AbstractConnection

from agents.identity import Identity
from broker.amqp import topology
from broker.amqp.connection import CALL_LIMIT, Refused, map_errors
from broker.amqp.timeouts import timeout
from broker.log import get_logger
from schemas import Job, Target

_log = get_logger()
_MAX_UNBOUND = 100  # targets of a job


async def remove_foreign_bindings(
    jobs: Collection[Job],
    own_targets: frozenset[Target],
    identity: Identity,
    connection: AbstractConnection,
) -> None:
    """Remove the bindings that brought jobs for other targets, such as groups that it left.

    An agent with a new ledger does not know what it has bound. An enrolled agent may not
    unbind: `pcm doctor` finds its bindings.
    """
    others = {
        target
        for job in jobs
        if own_targets.isdisjoint(job.targets)
        for target in job.targets[:_MAX_UNBOUND]
    }
    if not others:
        return
    name = topology.queue_name(identity.kind, identity.workstation, identity.user)
    keys = topology.target_keys(identity.kind, others)
    try:
        with map_errors(f"removing bindings of {name}"):
            async with timeout(CALL_LIMIT), connection.channel() as channel:
                queue = await channel.get_queue(name, ensure=False)
                for key in keys:
                    await queue.unbind(topology.JOBS, key)
    except Refused as error:
        _log.warning("bindings.obsolete", reason=str(error))
        return
    _log.warning(
        "bindings.removed",
        targets=sorted(map(str, others)),
        reason="they brought jobs that are not for this workstation",
    )
