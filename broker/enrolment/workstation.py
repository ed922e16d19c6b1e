"""A workstation's agents enrolled, given new passwords, and revoked: calls for scripts."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from broker.amqp.management import Management
from broker.amqp.topology import QueueType
from broker.enrolment.credentials import settings_of, urls_of
from broker.enrolment.enrolment import Enrolment
from broker.enrolment.rights import AgentLogin, agents, in_order
from broker.settings import ManagementSettings, load
from schemas.errors import PcmError
from schemas.names import check_name


class NotEnrolled(PcmError):
    """A workstation has no such agent that is enrolled; nothing was done."""


@dataclass(frozen=True)
class Credentials:
    """With what an enrolled agent runs.

    Attributes:
        agent: whose they are.
        settings: its settings, `PCM_AMQP_URL` with its password among them; None where the agent
            keeps the password that it has, which cannot be read back.
    """

    agent: AgentLogin
    settings: Mapping[str, str] | None = field(repr=False)


def enrol(
    workstation: str,
    users: Iterable[str] = (),
    groups: Iterable[str] = (),
    *,
    queue_type: QueueType = "quorum",
    settings: ManagementSettings | None = None,
) -> list[Credentials]:
    """Give the agents of a workstation logins and queues of their own; again is safe.

    Agents that are enrolled keep their passwords and queues, with the jobs there; all are in the
    groups named now.

    Args:
        workstation: its name.
        users: who have an interactive agent there, beside the service agent.
        groups: all that it is in, also those that follow from what it is, such as "os-linux".
        queue_type: of queues that are made: "quorum" or "classic".
        settings: how the management API is reached; default: from the environment. Its login
            needs the tag administrator. Agents are given the broker's addresses of `amqp_url`.

    Returns:
        The credentials of all agents of the workstation. They are shown once.

    Raises:
        ValueError: a name is none.
        BrokerError: the management API cannot be reached, or does not let us.
    """
    settings, enrolment = _enrolment(settings)
    name = check_name(workstation)
    in_groups = [check_name(group) for group in dict.fromkeys(groups)]
    named = agents(name, map(check_name, users))
    enrolled = enrolment.enrolled(name)
    found = in_order([*named, *enrolled])
    passwords = new_passwords(agent for agent in found if agent not in enrolled)
    enrolment.enrol(found, in_groups, passwords, queue_type)
    return _credentials(found, passwords, in_groups, settings)


def rotate(
    workstation: str, users: Iterable[str] = (), *, settings: ManagementSettings | None = None
) -> list[Credentials]:
    """Give the enrolled agents of a workstation new passwords, and close their connections.

    Queues and jobs stay. The agents are to be started with the new settings.

    Args:
        workstation: its name.
        users: only the interactive agents of these; default: all agents.
        settings: as for `enrol`.

    Raises:
        NotEnrolled: one of them is not; nothing was done.
        ValueError: a name is none.
        BrokerError: the management API cannot be reached, or does not let us.
    """
    settings, enrolment = _enrolment(settings)
    name = check_name(workstation)
    found = chosen(enrolment.enrolled(name), name, users)
    groups = enrolment.groups(found[0])
    passwords = new_passwords(found)
    enrolment.rotate(passwords)
    return _credentials(found, passwords, groups, settings)


def revoke(
    workstation: str, users: Iterable[str] = (), *, settings: ManagementSettings | None = None
) -> list[AgentLogin]:
    """Delete the logins of a workstation's agents, and their queues with the jobs that wait there.

    The history goes on listing the workstation, until `Dispatcher.forget`.

    Args:
        workstation: its name.
        users: only the interactive agents of these; default: all agents.
        settings: as for `enrol`.

    Returns:
        Whose logins were deleted.

    Raises:
        NotEnrolled: one of them is not; nothing was done.
        ValueError: a name is none.
        BrokerError: the management API cannot be reached, or does not let us.
    """
    _, enrolment = _enrolment(settings)
    name = check_name(workstation)
    found = chosen(enrolment.agents(name), name, users)
    enrolment.revoke(found)
    return found


def new_passwords(found: Iterable[AgentLogin]) -> dict[str, str]:
    """Return a new password for each agent, by its login."""
    return {agent.login: secrets.token_urlsafe(32) for agent in found}


def chosen(found: Sequence[AgentLogin], workstation: str, users: Iterable[str]) -> list[AgentLogin]:
    """Return the agents that are meant: those of the users named, or all.

    Raises:
        NotEnrolled: one of them is not among those found, or there are none.
    """
    wanted = set(map(check_name, users))
    meant = [agent for agent in found if not wanted or agent.user in wanted]
    missing = wanted - {agent.user for agent in meant}
    if missing or not meant:
        whom = "".join(f" --user {user}" for user in sorted(missing))
        raise NotEnrolled(f"not enrolled: {workstation}{whom}; nothing was done")
    return meant


def _enrolment(settings: ManagementSettings | None) -> tuple[ManagementSettings, Enrolment]:
    settings = settings or load(ManagementSettings)
    return settings, Enrolment(Management.of(settings), settings.virtual_host)


def _credentials(
    found: Iterable[AgentLogin],
    passwords: Mapping[str, str],
    groups: Sequence[str],
    settings: ManagementSettings,
) -> list[Credentials]:
    def of(agent: AgentLogin) -> Mapping[str, str] | None:
        if (password := passwords.get(agent.login)) is None:
            return None
        return settings_of(agent, urls_of(agent, password, settings.amqp_url), groups)

    return [Credentials(agent, of(agent)) for agent in found]
