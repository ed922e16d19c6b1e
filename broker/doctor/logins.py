"""Checks of broker users: permissions that a login should not have."""

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from broker.amqp import topology
from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot, Row
from broker.doctor.topology import groups_of
from broker.enrolment.rights import AgentLogin, permissions, topic_permissions

_COPIES_CHECKED = (4, 0, 3)  # the first version that checks the keys in CC and BCC
_PUBLIC_LOGINS = ("guest", "pcm")  # RabbitMQ's, and compose.yaml's
_SPECIAL = re.compile(r"[.^$*+?{}()|\[\]\\]")
_ANY_JOB = "background.mandatory.all"
_DEFAULT_EXCHANGE = "amq.default"
_TOPICS = (topology.JOBS, topology.REPORTS)


@dataclass(frozen=True)
class Login:
    """A broker user with its permissions in our virtual host, which are regular expressions."""

    name: str
    tags: tuple[str, ...]
    configure: str
    write: str
    read: str
    topics: Mapping[str, Row] = field(default_factory=dict)

    @property
    def agent(self) -> AgentLogin | None:
        """The enrolled agent of this login; None if it is not an agent's."""
        return AgentLogin.of_login(self.name, self.name.partition("@")[2])

    @property
    def is_administrator(self) -> bool:
        """Whether it can give itself every permission."""
        return "administrator" in self.tags


def logins(snapshot: BrokerSnapshot) -> list[Login]:
    """Return the logins that have permissions in our virtual host."""
    managed = snapshot.managed
    if managed is None or managed.users is None:
        return []
    tags = {user["name"]: _tags(user) for user in managed.users}
    topics: dict[str, dict[str, Row]] = {}
    for row in managed.topic_permissions:
        topics.setdefault(row["user"], {})[row["exchange"]] = row
    return [
        Login(
            name=row["user"],
            tags=tags.get(row["user"], ()),
            configure=row["configure"],
            write=row["write"],
            read=row["read"],
            topics=topics.get(row["user"], {}),
        )
        for row in managed.permissions
    ]


def _tags(user: Row) -> tuple[str, ...]:
    tags = user.get("tags", "")  # a list since 3.9
    return tuple(tags.split(",") if isinstance(tags, str) else tags)


def allows(pattern: str, name: str) -> bool:
    """Whether a pattern matches a name as in RabbitMQ; true if we cannot evaluate it."""
    try:
        return re.search((pattern or "^$").replace(r"\z", r"\Z"), name) is not None
    except re.error:
        return True


def guest(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """The names and passwords of RabbitMQ's and of our compose.yaml's first user are public."""
    users = snapshot.managed.users if snapshot.managed else None
    if users is None:
        own = {(url.user or "guest", url.password or "guest") for url in snapshot.urls}
        found = [name for name in _PUBLIC_LOGINS if (name, name) in own]
    else:
        found = [str(user["name"]) for user in users if _has_public_password(user)]
    for name in found:
        remedies = {
            "guest": "create your own administrator, then rabbitmqctl delete_user guest",
            "pcm": "set PCM_BROKER_PASSWORD for new brokers; here: rabbitmqctl change_password pcm",
        }
        yield Finding(
            Severity.UNSAFE,
            "guest",
            f"the user {name} exists with its default password",
            remedies[name],
        )


def _has_public_password(user: Row) -> bool:
    """Whether a user of a public name has its default password, which is the same."""
    name = str(user["name"])
    if (
        name not in _PUBLIC_LOGINS
        or user.get("hashing_algorithm") != "rabbit_password_hashing_sha256"
    ):
        return False
    salted = base64.b64decode(user.get("password_hash") or "")
    return salted[4:] == hashlib.sha256(salted[:4] + name.encode()).digest()


def topic_rows(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Without a topic permission on an exchange, a login can use every key there."""
    for login in _other_logins(snapshot):
        for exchange in _TOPICS:
            allowed = [
                word
                for word, pattern in (("write", login.write), ("read", login.read))
                if allows(pattern, exchange)
            ]
            if allowed and exchange not in login.topics:
                consequence = (
                    "it can send any job"
                    if exchange == topology.JOBS and "write" in allowed
                    else "it can report as any agent"
                    if "write" in allowed
                    else "it can receive copies of all messages there"
                )
                yield Finding(
                    Severity.UNSAFE,
                    "topic-rows",
                    f"{login.name} can {' and '.join(allowed)} {exchange} without a topic"
                    f" permission there: {consequence}",
                    f"rabbitmqctl set_topic_permissions -p {snapshot.virtual_host} {login.name}"
                    f" {exchange} WRITE READ, as narrow as possible",
                )


def copies(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Old versions do not check the routing keys in the headers CC and BCC."""
    if snapshot.version >= _COPIES_CHECKED:
        return
    for login in _other_logins(snapshot):
        row = login.topics.get(topology.JOBS)
        if (
            row
            and allows(login.write, topology.JOBS)
            and not _allows(login, row["write"], _ANY_JOB)
        ):
            yield Finding(
                Severity.UNSAFE,
                "copies",
                f"{login.name} can write to {topology.JOBS} with some keys: before RabbitMQ 4.0.3"
                " it can send any job with the headers CC and BCC",
                f"remove its permission to write there, or update RabbitMQ {snapshot.version_text}",
            )


def _allows(login: Login, pattern: str, key: str) -> bool:
    return allows(pattern.replace("{username}", login.name), key)


def names_with_special_characters(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """RabbitMQ does not escape a user's name in {username}: a dot matches any character."""
    for login in logins(snapshot):
        patterns = [row[word] for row in login.topics.values() for word in ("write", "read")]
        if _SPECIAL.search(login.name) and any("{username}" in pattern for pattern in patterns):
            yield Finding(
                Severity.UNSAFE,
                "names",
                f"{login.name}: its name has special characters of regular expressions, and is"
                " inserted into a pattern by {username}",
                "write the name into the pattern, with \\ before these characters, or rename it",
            )


def default_exchange(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A login that can write to it can put messages into any queue, by the queue's name."""
    names = {
        login.name
        for login in logins(snapshot)
        if not login.is_administrator and allows(login.write, _DEFAULT_EXCHANGE)
    }
    if names:
        yield Finding(
            Severity.UNSAFE,
            "default-exchange",
            f"can write to the default exchange, and so to any queue: {named(names)}",
            "change their write pattern so that it does not match amq.default",
        )


def queues(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A login that can read a queue can empty it; one that can configure it can delete it."""
    managed = snapshot.managed
    if managed is None:
        return
    agent_queues = [row["name"] for row in managed.queues if AgentLogin.of_queue(row["name"])]
    for login in _other_logins(snapshot):
        for word, pattern, harm in (
            ("read", login.read, "take jobs from"),
            ("configure", login.configure, "delete"),
        ):
            reached = {name for name in agent_queues if allows(pattern, name)}
            if reached:
                yield Finding(
                    Severity.UNSAFE,
                    "queues",
                    f"{login.name} can {harm} agents' queues ({word}): {named(reached)}",
                    "pcm enrol creates a login for each agent; remove the permissions of this one",
                )


def enrolled(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent's login has exactly the permissions of enrolment."""
    managed = snapshot.managed
    for login in logins(snapshot):
        agent = login.agent
        if agent is None or managed is None:
            continue
        wrong = [
            f"{word} {getattr(login, word)!r}"
            for word, pattern in permissions(agent).items()
            if getattr(login, word) != pattern
        ]
        expected = topic_permissions(agent, groups_of(managed, agent.queue))
        for exchange, allowed in expected.items():
            row = login.topics.get(exchange)
            if row is None:
                wrong.append(f"no topic permission on {exchange}")
                continue
            wrong += [
                f"{word} {row[word]!r} on {exchange}"
                for word, pattern in allowed.items()
                if _alternatives(row[word]) != _alternatives(pattern)
            ]
        wrong += [f"a topic permission on {name}" for name in login.topics.keys() - expected.keys()]
        if login.tags and login.tags != ("",):
            wrong.append(f"the tag {named(login.tags)}")
        if wrong:
            yield Finding(
                Severity.UNSAFE,
                "enrolled",
                f"{login.name} has other permissions than enrolment gives: {', '.join(wrong)}",
                f"pcm enrol {agent.workstation}{agent.option}, with its groups; tags by rabbitmqctl"
                f" set_user_tags {login.name}",
            )


def _alternatives(pattern: str) -> frozenset[str]:
    return frozenset(pattern.removeprefix("^(").removesuffix(r")\z").split("|"))


def agents_as_others(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """If an agent's login can send jobs, root on a workstation controls the whole fleet."""
    if snapshot.managed is None:
        return
    senders = {
        login.name
        for login in logins(snapshot)
        if login.agent is None and allows(login.write, topology.JOBS)
    }
    agents: dict[str, set[str]] = {}
    for connection in snapshot.managed.connections:
        if (
            connection.get("vhost") != snapshot.virtual_host
            or connection.get("user") not in senders
        ):
            continue
        program = str(connection.get("client_properties", {}).get("connection_name", ""))
        match program.split():
            case ["pcm-agent", workstation, *_]:
                agents.setdefault(connection["user"], set()).add(workstation)
    for user, workstations in sorted(agents.items()):
        yield Finding(
            Severity.UNSAFE,
            "agents-as-others",
            f"agents log in as {user}, which can send jobs: with the password from one"
            f" workstation, an attacker controls all ({named(workstations)})",
            "pcm enrol WORKSTATION, and start the agents with the settings that it prints",
        )


def _other_logins(snapshot: BrokerSnapshot) -> list[Login]:
    """Return the logins that are neither administrators nor enrolled agents."""
    return [
        login for login in logins(snapshot) if not login.is_administrator and login.agent is None
    ]
