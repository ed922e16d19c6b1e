"""Seals environment values for the agents that are to run a job, and for nobody else."""

import base64
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from schemas import Context, Job, Secrets
from schemas.errors import PcmError
from schemas.message import BODY_LIMIT
from schemas.names import check_text
from schemas.secrets import SIZE_LIMIT
from schemas.text import listed

if TYPE_CHECKING:
    from broker.history.workstations import AgentRow, Fleet

_SHOWN = 10


class CannotSeal(PcmError, ValueError):
    """Values cannot be sealed for all whom a job is for; the text names them."""


def seal(job: Job, values: Mapping[str, str], fleet: "Fleet") -> Job:
    """Return a job with secret environment variables, which only the agents can open it is for.

    Args:
        job: whose targets say for whom; for a background job, that is the service agents.
        values: of the variables, by name.
        fleet: the workstations as the history knows them.

    Raises:
        CannotSeal: a workstation has told no key, they are too many, or the values too long.
        ValueError: a variable cannot be named so.
    """
    if job.command.secrets is not None:
        raise CannotSeal("secrets: it has some already")
    plain = json.dumps({name: check_text(value) for name, value in values.items()}).encode()
    if len(plain) > SIZE_LIMIT:
        raise CannotSeal(f"secrets: {len(plain)} bytes are over the limit of {SIZE_LIMIT}")
    keys = _keys(job, fleet)
    sealed = _with(job, _sealed(tuple(values), plain, keys))
    _check_size(sealed, keys)
    return sealed


def _keys(job: Job, fleet: "Fleet") -> dict[str, str]:
    """Return the public keys of the agents that may run a job, by AGENT@WORKSTATION."""
    names = fleet.reached(job)
    named = {target.name for target in job.targets if target.scope == "workstation"}
    excluded = {target.name for target in job.excluded if target.scope == "workstation"}
    rows = {row.name: row.agents for row in fleet.workstations(names)} if names else {}
    lost = sorted(filter(None, named - excluded - fleet.all_names()))
    if lost:
        raise CannotSeal(f"secrets: no agent of {listed(lost, _SHOWN)} has ever checked in")
    if not names:
        raise CannotSeal("secrets: no workstation that is known is in its targets")
    keys = {}
    for name in names:
        found = [agent for agent in rows[name] if _may_run(agent, job)]
        if not found:
            lost.append(name)
        for agent in found:
            if agent.sealing_key:
                keys[f"{agent.agent}@{name}"] = agent.sealing_key
            else:
                lost.append(f"{name} ({agent.agent})")
    if lost:
        raise CannotSeal(
            f"secrets: no key is known of {listed(lost, _SHOWN)}: has its agent checked in?"
        )
    return keys


def _may_run(agent: "AgentRow", job: Job) -> bool:
    return agent.agent == "service" or job.context is Context.FOREGROUND


def _sealed(names: tuple[str, ...], plain: bytes, keys: Mapping[str, str]) -> Secrets:
    from nacl.public import PublicKey, SealedBox
    from nacl.secret import SecretBox
    from nacl.utils import random

    key = random(SecretBox.KEY_SIZE)
    return Secrets(
        names=names,
        sealed=_text(SecretBox(key).encrypt(plain)),
        keys={
            agent: _text(SealedBox(PublicKey(base64.b64decode(public))).encrypt(key))
            for agent, public in keys.items()
        },
    )


def _text(data: bytes) -> bytes:
    return base64.b64encode(data)


def _with(job: Job, secrets: Secrets) -> Job:
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
        f"secrets: sealed for {count:,} workstations they make a message of {size:,} bytes, over"
        f" the limit of {BODY_LIMIT:,}: about {fit:,} fit; send it to fewer at once"
    )
