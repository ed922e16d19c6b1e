"""Checks of broker users: what a login may do that it should not."""

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

_COPIES_CHECKED = (4, 0, 3)  # from then on, the keys in CC and BCC count as well
_SPECIAL = re.compile(r"[.^$*+?{}()|\[\]\\]")
_ANY_JOB = "background.mandatory.all"
_DEFAULT_EXCHANGE = "amq.default"
_TOPICS = (topology.JOBS, topology.REPORTS)


@dataclass(frozen=True)
class Login:
    """A broker user, and what it may do in our virtual host; patterns are regular expressions."""

    name: str
    tags: tuple[str, ...]
    configure: str
    write: str
    read: str
    topics: Mapping[str, Row] = field(default_factory=dict)

    @property
    def agent(self) -> AgentLogin | None:
        """The enrolled agent that it is, if it is one."""
        return AgentLogin.of_login(self.name, self.name.partition("@")[2])

    @property
    def is_administrator(self) -> bool:
        """Whether it may give itself whatever it likes."""
        return "administrator" in self.tags


def logins(snapshot: BrokerSnapshot) -> list[Login]:
    """Return the logins that may do something in our virtual host."""
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
    """Whether a pattern matches a name, as RabbitMQ reads it; the worst where we cannot tell."""
    try:
        return re.search(pattern or "^$", name) is not None
    except re.error:
        return True


def guest(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Everybody knows the name and the password."""
    users = snapshot.managed.users if snapshot.managed else None
    if users is None:
        looks = ((url.user or "guest", url.password or "guest") for url in snapshot.urls)
        found = ("guest", "guest") in looks
    else:
        found = any(map(_is_guest, users))
    if not found:
        return
    yield Finding(
        Severity.UNSAFE,
        "guest",
        "the user guest is there with the password that everybody knows",
        "make an administrator of your own, then rabbitmqctl delete_user guest",
    )


def _is_guest(user: Row) -> bool:
    if user["name"] != "guest" or user.get("hashing_algorithm") != "rabbit_password_hashing_sha256":
        return False
    kept = base64.b64decode(user.get("password_hash") or "")
    return kept[4:] == hashlib.sha256(kept[:4] + b"guest").digest()


def topic_rows(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Where an exchange has no row for a login, the login may do everything there."""
    for login in _strangers(snapshot):
        for exchange in _TOPICS:
            may = [
                word
                for word, pattern in (("write", login.write), ("read", login.read))
                if allows(pattern, exchange)
            ]
            if may and exchange not in login.topics:
                so = (
                    ": it may send any job"
                    if exchange == topology.JOBS and "write" in may
                    else ": it may report as anybody"
                    if "write" in may
                    else ": it may get copies of all that is sent there"
                )
                yield Finding(
                    Severity.UNSAFE,
                    "topic-rows",
                    f"{login.name} may {' and '.join(may)} {exchange}, and has no topic permission"
                    f" there{so}",
                    f"rabbitmqctl set_topic_permissions -p {snapshot.virtual_host} {login.name}"
                    f" {exchange} WRITE READ, as narrow as can be",
                )


def copies(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """The headers CC and BCC name further routing keys, which old versions do not look at."""
    if snapshot.version >= _COPIES_CHECKED:
        return
    for login in _strangers(snapshot):
        row = login.topics.get(topology.JOBS)
        if (
            row
            and allows(login.write, topology.JOBS)
            and not _allows(login, row["write"], _ANY_JOB)
        ):
            yield Finding(
                Severity.UNSAFE,
                "copies",
                f"{login.name} may write to {topology.JOBS} under some keys: before RabbitMQ 4.0.3"
                " it gets round that with the headers CC and BCC, and may send any job",
                f"take its right to write there, or update RabbitMQ {snapshot.version_text}",
            )


def _allows(login: Login, pattern: str, key: str) -> bool:
    return allows(pattern.replace("{username}", login.name), key)


def names(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """RabbitMQ puts a user's name into {username} as it is: a dot there is any character."""
    for login in logins(snapshot):
        patterns = [row[word] for row in login.topics.values() for word in ("write", "read")]
        if _SPECIAL.search(login.name) and any("{username}" in pattern for pattern in patterns):
            yield Finding(
                Severity.UNSAFE,
                "names",
                f"{login.name}: its name has characters that a regular expression reads as more"
                " than themselves, and stands in a pattern by {username}",
                "write the name into the pattern, with \\ before each of them, or rename the user",
            )


def default_exchange(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Whoever may write to it may put a message into any queue, by the queue's name."""
    found = {
        login.name
        for login in logins(snapshot)
        if not login.is_administrator and allows(login.write, _DEFAULT_EXCHANGE)
    }
    if found:
        yield Finding(
            Severity.UNSAFE,
            "default-exchange",
            f"may write to the default exchange, and so into any queue: {named(found)}",
            "let the pattern of what they may write not match amq.default",
        )


def queues(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Whoever may read a queue may empty it; whoever may configure it may delete it."""
    managed = snapshot.managed
    if managed is None:
        return
    ours = [row["name"] for row in managed.queues if AgentLogin.of_queue(row["name"])]
    for login in _strangers(snapshot):
        for word, pattern, harm in (
            ("read", login.read, "take jobs out of"),
            ("configure", login.configure, "delete"),
        ):
            reached = {name for name in ours if allows(pattern, name)}
            if reached:
                yield Finding(
                    Severity.UNSAFE,
                    "queues",
                    f"{login.name} may {harm} agents' queues ({word}): {named(reached)}",
                    "pcm enrol gives each agent a login of its own; take this one its rights",
                )


def enrolled(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent's login has the rights that enrolment gives, and no others."""
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
        rights = topic_permissions(agent, groups_of(managed, agent.queue))
        for exchange, allowed in rights.items():
            row = login.topics.get(exchange)
            if row is None:
                wrong.append(f"no topic permission on {exchange}")
                continue
            wrong += [
                f"{word} {row[word]!r} on {exchange}"
                for word, pattern in allowed.items()
                if _alternatives(row[word]) != _alternatives(pattern)
            ]
        wrong += [f"a topic permission on {name}" for name in login.topics.keys() - rights.keys()]
        if login.tags and login.tags != ("",):
            wrong.append(f"the tag {named(login.tags)}")
        if wrong:
            users = f" --user {agent.user}" if agent.user else ""
            yield Finding(
                Severity.UNSAFE,
                "enrolled",
                f"{login.name} has other rights than enrolment gives: {', '.join(wrong)}",
                f"pcm enrol {agent.workstation}{users}, with its groups; tags by rabbitmqctl"
                f" set_user_tags {login.name}",
            )


def _alternatives(pattern: str) -> frozenset[str]:
    return frozenset(pattern.removeprefix("^(").removesuffix(")$").split("|"))


def agents_as_others(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent whose login may send jobs gives every workstation's root the whole fleet."""
    if snapshot.managed is None:
        return
    senders = {
        login.name
        for login in logins(snapshot)
        if login.agent is None and allows(login.write, topology.JOBS)
    }
    found: dict[str, set[str]] = {}
    for connection in snapshot.managed.connections:
        if (
            connection.get("vhost") != snapshot.virtual_host
            or connection.get("user") not in senders
        ):
            continue
        program = str(connection.get("client_properties", {}).get("connection_name", ""))
        match program.split():
            case ["pcm-agent", workstation, *_]:
                found.setdefault(connection["user"], set()).add(workstation)
    for user, workstations in sorted(found.items()):
        yield Finding(
            Severity.UNSAFE,
            "agents-as-others",
            f"agents log in as {user}, which may send jobs: who finds the password on one"
            f" workstation commands them all ({named(workstations)})",
            "pcm enrol WORKSTATION, and start the agents with the settings that it gives",
        )


def _strangers(snapshot: BrokerSnapshot) -> list[Login]:
    """Return the logins that are neither administrators nor enrolled agents."""
    return [
        login for login in logins(snapshot) if not login.is_administrator and login.agent is None
    ]
