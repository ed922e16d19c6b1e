"""Enrol, rotate and revoke the agents of a workstation."""

import secrets
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from broker.amqp import topology
from broker.amqp.connection import BrokerError, connect
from broker.amqp.management import Management
from broker.amqp.publisher import Publisher
from broker.amqp.topology import QueueType
from broker.enrolment.credentials import settings_of, urls_of
from broker.enrolment.definitions_file import DefinitionsFile
from broker.enrolment.enrolment import Enrolment
from broker.enrolment.rights import AgentLogin, agents_of, unique_sorted
from broker.run_in_thread import run_in_thread
from broker.settings import ManagementSettings, load
from broker.stream import stream
from schemas import AgentsRevoked
from schemas.errors import PcmError
from schemas.names import check_name, check_user


class NotEnrolled(PcmError):
    """A workstation has no such enrolled agent; nothing was done.

    Attributes:
        workstation: its name.
    """

    def __init__(self, workstation: str, options: str) -> None:
        super().__init__(f"not enrolled: {workstation}{options}; nothing was done")
        self.workstation = workstation


class NotRecorded(BrokerError):
    """Agents were revoked, but the history cannot know it."""


class Credentials(NamedTuple):
    """The settings of an enrolled agent.

    Attributes:
        agent: the agent.
        settings: its settings, with the password in `PCM_AMQP_URL`; None if its password is
            unchanged, since it cannot be read.
        groups: the groups of its workstation.
    """

    agent: AgentLogin
    settings: Mapping[str, str] | None
    groups: tuple[str, ...]

    def __repr__(self) -> str:
        return f"Credentials({self.agent!r})"  # without the password


Prepare = Callable[[Sequence[Credentials]], None]


def enrol(
    workstation: str,
    users: Iterable[str] = (),
    groups: Iterable[str] = (),
    *,
    queue_type: QueueType = "quorum",
    definitions: str | Path | None = None,
    brokers: Sequence[str] | None = None,
    prepare: Prepare | None = None,
    settings: ManagementSettings | None = None,
) -> list[Credentials]:
    """Create logins and queues for the agents of a workstation; it can be repeated.

    Enrolled agents keep their passwords and queues, with the jobs in them. All agents are in the
    given groups.

    Args:
        workstation: its name.
        users: the users with an interactive agent, in addition to the service agent.
        groups: all groups of the workstation, also automatic ones such as "os-linux".
        queue_type: the type of new queues: "quorum" or "classic".
        definitions: write them to this file of RabbitMQ definitions, and do not change the broker.
        brokers: the broker's URLs for the agents; default: `amqp_url` of the settings.
        prepare: is called with the credentials before the broker is changed, to store them.
        settings: the settings of the management API; default: from the environment. Its login
            needs the tag administrator.

    Returns:
        The credentials of all agents of the workstation. Passwords cannot be read again.

    Raises:
        ValueError: a name is invalid.
        WrongDefinitions: the file holds no definitions.
        BrokerError: the management API is unreachable, or refuses.
    """
    settings = settings or load(ManagementSettings)
    name = check_name(workstation)
    in_groups = tuple(check_name(group) for group in dict.fromkeys(groups))
    named = agents_of(name, map(check_user, users))
    place = (
        _enrolment(settings)
        if definitions is None
        else DefinitionsFile(Path(definitions), settings.virtual_host)
    )
    enrolled = place.enrolled(name)
    agents = unique_sorted([*named, *enrolled])
    passwords = _new_passwords(agent for agent in agents if agent not in enrolled)
    credentials = _credentials(agents, passwords, in_groups, brokers or settings.amqp_url)
    if prepare is not None:
        prepare(credentials)
    place.enrol(agents, in_groups, passwords, queue_type)
    return credentials


def rotate(
    workstation: str,
    users: Iterable[str] = (),
    *,
    brokers: Sequence[str] | None = None,
    prepare: Prepare | None = None,
    settings: ManagementSettings | None = None,
) -> list[Credentials]:
    """Set new passwords for the enrolled agents of a workstation, and close their connections.

    Queues and jobs stay. Restart the agents with the new settings.

    Args:
        workstation: its name.
        users: only the interactive agents of these users; default: all agents.
        brokers: as for `enrol`.
        prepare: as for `enrol`.
        settings: as for `enrol`.

    Raises:
        NotEnrolled: an agent is not enrolled; nothing was done.
        ValueError: a name is invalid.
        BrokerError: the management API is unreachable, or refuses.
    """
    settings = settings or load(ManagementSettings)
    enrolment = _enrolment(settings)
    name = check_name(workstation)
    agents = _select(enrolment.enrolled(name), name, users)
    groups = tuple(enrolment.groups(agents[0]))
    passwords = _new_passwords(agents)
    credentials = _credentials(agents, passwords, groups, brokers or settings.amqp_url)
    if prepare is not None:
        prepare(credentials)
    enrolment.rotate(passwords)
    return credentials


def revoke(
    workstation: str, users: Iterable[str] = (), *, settings: ManagementSettings | None = None
) -> list[AgentLogin]:
    """Delete the logins of a workstation's agents, and their queues with the queued jobs.

    The history still lists the workstation, as revoked, until `Dispatcher.forget`.

    Args:
        workstation: its name.
        users: only the interactive agents of these users; default: all agents.
        settings: as for `enrol`.

    Returns:
        The agents whose logins were deleted.

    Raises:
        NotEnrolled: an agent is not enrolled; nothing was done.
        NotRecorded: it was done, but there is no record of it in the stream.
        ValueError: a name is invalid.
        BrokerError: the management API is unreachable, or refuses.
    """
    agents = agents_with_login(workstation, users, settings=settings)
    revoke_agents(agents, settings=settings)
    return agents


def agents_with_login(
    workstation: str, users: Iterable[str] = (), *, settings: ManagementSettings | None = None
) -> list[AgentLogin]:
    """Return the agents that `revoke` would revoke.

    Raises:
        NotEnrolled, ValueError, BrokerError: as `revoke` does.
    """
    name = check_name(workstation)
    return _select(_enrolment(settings or load(ManagementSettings)).agents(name), name, users)


def revoke_agents(
    agents: Iterable[AgentLogin], *, settings: ManagementSettings | None = None
) -> None:
    """Delete the logins and queues of agents of a workstation; see `revoke`."""
    settings, agents = settings or load(ManagementSettings), list(agents)
    _enrolment(settings).revoke(agents)
    try:
        run_in_thread(_record_revocation(agents, settings))
    except BrokerError as error:
        raise NotRecorded(f"revoked, but not recorded: {error}; pcm forget records it") from error


async def _record_revocation(agents: Sequence[AgentLogin], settings: ManagementSettings) -> None:
    workstation = agents[0].workstation
    revoked = AgentsRevoked(workstation=workstation, agents=tuple(agent.name for agent in agents))
    async with connect(settings, f"pcm {revoked.sender}") as connection:
        await topology.ensure(connection)
        publisher = await Publisher.open(connection)
        await stream.append(
            publisher, f"{revoked.kind}.{workstation}", revoked.body(), kind=revoked.kind
        )


def _new_passwords(agents: Iterable[AgentLogin]) -> dict[str, str]:
    """Return a new password for each agent, by login."""
    return {agent.login: secrets.token_urlsafe(32) for agent in agents}


def _select(
    agents: Sequence[AgentLogin], workstation: str, users: Iterable[str]
) -> list[AgentLogin]:
    """Return the agents of the users, or all.

    Raises:
        NotEnrolled: a user has no agent among them, or there is none.
    """
    _, *wanted = agents_of(workstation, users)
    selected = [agent for agent in agents if not wanted or agent in wanted]
    missing = set(wanted).difference(selected)
    if missing or not selected:
        options = "".join(agent.option for agent in unique_sorted(missing))
        raise NotEnrolled(workstation, options)
    return selected


def _enrolment(settings: ManagementSettings) -> Enrolment:
    return Enrolment(Management.of(settings), settings.virtual_host)


def _credentials(
    agents: Iterable[AgentLogin],
    passwords: Mapping[str, str],
    groups: tuple[str, ...],
    brokers: Sequence[str],
) -> list[Credentials]:
    def settings(agent: AgentLogin) -> Mapping[str, str] | None:
        if (password := passwords.get(agent.login)) is None:
            return None
        return settings_of(agent, urls_of(agent, password, brokers), groups)

    return [Credentials(agent, settings(agent), groups) for agent in agents]
