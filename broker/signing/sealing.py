"""Encrypt environment values for the agents that may run a job."""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from schemas import Context, Job, Secrets
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.names import check_text
from schemas.orders.secrets import SIZE_LIMIT
from schemas.text import listed

if TYPE_CHECKING:
    from broker.history.queries.workstations import AgentRow, Fleet

_SHOWN = 10


class CannotSeal(PcmError, ValueError):
    """Values cannot be sealed for all agents of a job; the message names them."""


def seal(job: Job, values: Mapping[str, str], fleet: "Fleet") -> Job:
    """Return a job with secret environment variables, which only its agents can decrypt.

    Args:
        job: the job; its targets determine the agents, for a background job only the service.
        values: the variables' values, by name.
        fleet: the workstations in the history.

    Raises:
        CannotSeal: a workstation has no key, there are too many, or the values are too long.
        ValueError: a variable's name is invalid.
    """
    if job.command.secrets is not None:
        raise CannotSeal("secrets: the job has secrets already")
    plain = json.dumps({name: check_text(value) for name, value in values.items()}).encode()
    if len(plain) > SIZE_LIMIT:
        raise CannotSeal(f"secrets: {len(plain)} bytes are over the limit of {SIZE_LIMIT}")
    keys = _keys(job, fleet)
    sealed = _with_secrets(job, _encrypt(tuple(values), plain, keys))
    _check_size(sealed, keys)
    return sealed


def _keys(job: Job, fleet: "Fleet") -> dict[str, str]:
    """Return the public keys of the agents that can run a job, by AGENT@WORKSTATION."""
    names = fleet.reached(job)
    named = {target.name for target in job.targets if target.scope == "workstation"}
    excluded = {target.name for target in job.excluded if target.scope == "workstation"}
    rows = {row.name: row.agents for row in fleet.workstations(names)} if names else {}
    unknown = sorted(filter(None, named - excluded - fleet.all_names()))
    if unknown:
        raise CannotSeal(f"secrets: no agent of {listed(unknown, _SHOWN)} has ever checked in")
    revoked = fleet.revoked(job)
    if names:  # of a group, those that are left are enough
        revoked = [name for name in revoked if name in named]
    if revoked:
        raise CannotSeal(
            f"secrets: {listed(revoked, _SHOWN)}: the login was revoked, and the former key no"
            " longer counts; enrolled agents send theirs when they are started"
        )
    if not names:
        raise CannotSeal("secrets: the targets contain no known workstation")
    keys = {}
    without_key: list[str] = []
    for name in names:
        runners = [agent for agent in rows[name] if _can_run(agent, job)]
        if not runners:
            without_key.append(f"{name} (service)")
        for agent in runners:
            if _is_usable(agent.sealing_key):
                keys[f"{agent.agent}@{name}"] = agent.sealing_key
            else:
                without_key.append(f"{name} ({agent.agent})")
    if without_key:
        raise CannotSeal(
            f"secrets: {listed(without_key, _SHOWN)}: no key is known; has the agent checked in?"
        )
    return keys


def _is_usable(key: str) -> bool:
    """Whether values can be sealed for a key; older histories may have useless ones."""
    from pydantic import TypeAdapter, ValidationError

    from schemas.orders.signature import SealingKey

    try:
        TypeAdapter(SealingKey).validate_python(key)
    except ValidationError:
        return False
    return True


def _can_run(agent: "AgentRow", job: Job) -> bool:
    if agent.revoked_at is not None:
        return False  # nothing is sealed for its former key
    return agent.agent == "service" or job.context is Context.FOREGROUND


def _encrypt(names: tuple[str, ...], plain: bytes, keys: Mapping[str, str]) -> Secrets:
    from nacl.public import PublicKey, SealedBox
    from nacl.secret import SecretBox
    from nacl.utils import random

    key = random(SecretBox.KEY_SIZE)
    return Secrets(
        names=names,
        sealed=_base64(SecretBox(key).encrypt(plain)),
        keys={
            agent: _base64(SealedBox(PublicKey(base64.b64decode(public))).encrypt(key))
            for agent, public in keys.items()
        },
    )


def _base64(data: bytes) -> bytes:
    return base64.b64encode(data)


def _with_secrets(job: Job, secrets: Secrets) -> Job:
    command = {**job.command.model_dump(), "secrets": secrets}
    return Job.model_validate({**job.model_dump(), "command": command})


def _check_size(job: Job, keys: Iterable[str]) -> None:
    size = len(job.body())
    if size <= BODY_LIMIT:
        return
    count = len({agent.rpartition("@")[2] for agent in keys})
    named = sum(len(f'"{target}",') for target in job.targets if target.scope == "workstation")
    each = (len(job.command.model_dump_json(include={"secrets"})) + named) // count
    fit = max(0, count - (size - BODY_LIMIT) // each - 1)
    raise CannotSeal(
        f"secrets: for {count:,} workstations the message has {size:,} bytes, over the limit of"
        f" {BODY_LIMIT:,}: about {fit:,} workstations fit; send the job to fewer at a time"
    )
