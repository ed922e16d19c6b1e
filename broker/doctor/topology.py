"""Checks of exchanges, queues and bindings against the topology."""

from collections.abc import Iterable, Iterator

from broker.amqp import topology
from broker.amqp.topology import AgentKind
from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot, ManagementData, Row
from broker.enrolment.rights import AgentLogin
from schemas import Context

_ANYTHING = {"*", "#"}
_DECLARE = "pcm topology apply declares what is missing"


def groups_of(managed: ManagementData, queue: str) -> list[str]:
    """Return the groups in the bindings of a queue."""
    keys = (row["routing_key"] for row in managed.bindings if row["destination"] == queue)
    return topology.groups_in(keys)


def missing(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """All exchanges and central queues exist."""
    if snapshot.missing:
        text = f"missing: {named(snapshot.missing)}"
        yield Finding(Severity.WILL_BREAK, "topology", text, _DECLARE)


def exchanges(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Exchanges have their type, are durable, and have no alternate exchange."""
    rows = {row["name"]: row for row in snapshot.managed.exchanges} if snapshot.managed else {}
    for exchange in topology.EXCHANGES:
        row = rows.get(exchange.name)
        if row is None:
            continue
        if row["type"] != exchange.type.value or not row["durable"]:
            actual = row["type"] + ("" if row["durable"] else " and not durable")
            text = (
                f"the exchange {exchange.name} is {actual}; it should be"
                f" {exchange.type.value} and durable"
            )
            remedy = "delete it, then pcm topology apply"
            yield Finding(Severity.WILL_BREAK, "topology", text, remedy)
        if other := row["arguments"].get("alternate-exchange"):
            text = f"the exchange {exchange.name} passes unroutable messages to {other}"
            remedy = "delete it, then pcm topology apply"
            yield Finding(Severity.UNSAFE, "topology", text, remedy)


def central_queues(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """The central queues have their types and all their bindings."""
    managed = snapshot.managed
    if managed is None:
        return
    rows = {row["name"]: row for row in managed.queues}
    for queue in topology.central_queues():
        row = rows.get(queue.name)
        if row is None:
            continue
        kind = str(queue.arguments["x-queue-type"])
        if row.get("type") != kind:
            text = f"the queue {queue.name} is a {row.get('type')} queue, and should be a {kind}"
            remedy = "delete it, then pcm topology apply; what is in it is lost"
            yield Finding(Severity.WILL_BREAK, "topology", text, remedy)
        limit = "x-delivery-limit"
        if limit in queue.arguments and limit not in row["arguments"]:
            text = f"the queue {queue.name} drops a letter after too many deliveries"
            remedy = "delete it when it is empty, then pcm topology apply"
            yield Finding(Severity.WILL_BREAK, "topology", text, remedy)
        expected = {(source, key, ()) for source, key in queue.bindings} | {
            (topology.DEAD, "", _arguments(match)) for match in queue.matches
        }
        actual = {
            (binding["source"], binding["routing_key"], _arguments(binding["arguments"]))
            for binding in managed.bindings
            if binding["destination"] == queue.name and binding["source"]
        }
        if absent := {f"{source} {key}".strip() for source, key, _ in expected - actual}:
            text = f"the queue {queue.name} is not bound by {named(absent)}: such messages are lost"
            yield Finding(Severity.WILL_BREAK, "topology", text, _DECLARE)


def _arguments(given: Row | dict[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted((name, value) for name, value in given.items()))


def listeners(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Only agents' queues are bound to the exchange of jobs."""
    for binding in _job_bindings(snapshot):
        name, key = binding["destination"], binding["routing_key"]
        if binding["destination_type"] != "queue" or AgentLogin.of_queue(name) is None:
            yield Finding(
                Severity.UNSAFE,
                "listeners",
                f"the {binding['destination_type']} {name} receives copies of jobs ({key})",
                "find its owner, then delete it",
            )


def background(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """No interactive agent's queue is bound by a key of background jobs."""
    for agent, keys in _keys_of_agents(snapshot):
        if agent.kind is AgentKind.SERVICE:
            continue
        forbidden = {key for key in keys if key.split(".")[0] in {Context.BACKGROUND, *_ANYTHING}}
        if forbidden:
            yield Finding(
                Severity.UNSAFE,
                "background",
                f"{agent.queue} of an interactive agent is bound by {named(forbidden)}: a user"
                " receives background jobs",
                f"pcm revoke {agent.workstation}{agent.option}, then pcm enrol; find the"
                " login that can bind",
            )


def bindings(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent's queue has exactly the bindings of its workstation and groups."""
    incomplete: set[str] = set()
    for agent, keys in _keys_of_agents(snapshot):
        groups = [group for key in keys if (group := key.partition(".group.")[2])]
        expected = set(topology.binding_keys(agent.kind, agent.workstation, groups))
        foreign = (
            {key for key in keys - expected if key.split(".")[0] == Context.FOREGROUND}
            if agent.kind is AgentKind.INTERACTIVE
            else keys - expected
        )
        if foreign:
            yield Finding(
                Severity.UNSAFE,
                "bindings",
                f"{agent.queue} is bound by {named(foreign)}: it receives other jobs",
                f"pcm enrol {agent.workstation}, with its users and groups, restores the bindings",
            )
        if expected - keys:
            incomplete.add(agent.queue)
    if incomplete:
        yield Finding(
            Severity.WILL_BREAK,
            "bindings",
            f"queues without all their bindings, which jobs do not reach: {named(incomplete)}",
            "restart their agents, or pcm enrol their workstations",
        )


def groups(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent's queue is bound to the groups that its agent is in, by its last check-in."""
    known = {row.name: row for row in snapshot.fleet or () if row.service}
    for agent, keys in _keys_of_agents(snapshot):
        if not keys or (row := known.get(agent.workstation)) is None:
            continue
        bound, checked_in = set(topology.groups_in(keys)), set(row.groups)
        remedy = (
            f"pcm enrol {agent.workstation} with its groups, and PCM_GROUPS there; an agent that is"
            " not enrolled mends it at its start"
        )
        if obsolete := bound - checked_in:
            text = (
                f"{agent.queue} is bound to groups that its agent is not in: {named(obsolete)}; the"
                " agent does not run their jobs"
            )
            yield Finding(Severity.WILL_BREAK, "groups", text, remedy)
        if absent := checked_in - bound:
            text = (
                f"{agent.queue} is not bound to groups that its agent is in: {named(absent)}; their"
                " jobs do not reach it"
            )
            yield Finding(Severity.WILL_BREAK, "groups", text, remedy)


def queue_types(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Agents' queues are quorum queues, or classic queues outside of a cluster.

    The virtual host's default type does not matter: our queues name their type.
    """
    managed = snapshot.managed
    if managed is None:
        return
    kinds: dict[str, set[str]] = {}
    for row in managed.queues:
        if AgentLogin.of_queue(row["name"]):
            kinds.setdefault(str(row.get("type")), set()).add(row["name"])
    classic = kinds.pop("classic", set())
    kinds.pop("quorum", None)
    for kind, names in kinds.items():
        text = f"{named(names)}: {kind} queues do not deliver each job to one consumer, once"
        remedy = "delete them; their agents, or pcm enrol, declare them again"
        yield Finding(Severity.WILL_BREAK, "queue-types", text, remedy)
    if classic and len(managed.nodes) > 1:
        text = f"classic queues are unavailable while their node is down: {named(classic)}"
        remedy = (
            "PCM_QUEUE_TYPE=quorum (pcm enrol --queue-type quorum), unless the fleet is too large"
        )
        yield Finding(Severity.HINT, "queue-types", text, remedy)


def single_consumers(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Agents' quorum queues have a single active consumer; classic ones are consumed exclusively.

    Otherwise two machines of one name can each receive a part of the jobs.
    """
    shared = {
        row["name"]
        for row in (snapshot.managed.queues if snapshot.managed else ())
        if AgentLogin.of_queue(row["name"])
        and row.get("type") == "quorum"
        and row["arguments"].get("x-single-active-consumer") is not True
    }
    if shared:
        yield Finding(
            Severity.WILL_BREAK,
            "consumers",
            "queues of an older version, which two machines of one name can consume at the same"
            f" time: {named(shared)}",
            f"rabbitmqctl delete_queue -p {snapshot.virtual_host} QUEUE --if-empty for each; its"
            " agent, or pcm enrol, declares it again",
        )


def dead_letter_exchanges(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Agents' queues dead-letter rejected messages to the administrators only."""
    misdirected = {
        f"{row['name']} (to {row['arguments'].get('x-dead-letter-exchange', 'nowhere')})"
        for row in (snapshot.managed.queues if snapshot.managed else ())
        if AgentLogin.of_queue(row["name"])
        and row["arguments"].get("x-dead-letter-exchange") != topology.DEAD
    }
    if misdirected:
        yield Finding(
            Severity.UNSAFE,
            "dead-letters",
            f"queues that do not dead-letter to {topology.DEAD}: {named(misdirected)}",
            "delete them when they are empty; their agents, or pcm enrol, declare them again",
        )


def dead_letters(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A dead letter is a job that was not run, or an invalid message."""
    if snapshot.dead_letters:
        text = f"dead letters: {snapshot.dead_letters:,}"
        yield Finding(Severity.HINT, "dead-letters", text, "pcm dead list shows them")


def abandoned(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Queues of workstations that never checked in collect jobs without a consumer."""
    if snapshot.managed is None or snapshot.fleet is None or not snapshot.managed.has_statistics:
        return
    known = {row.name for row in snapshot.fleet}
    unused = {
        row["name"]
        for row in snapshot.managed.queues
        if (agent := AgentLogin.of_queue(row["name"]))
        and agent.workstation not in known
        and not row.get("consumers")
    }
    if unused:
        text = f"queues without a consumer, whose workstation never checked in: {named(unused)}"
        remedy = "start the agent, or pcm revoke the workstation"
        yield Finding(Severity.HINT, "abandoned", text, remedy)


def _job_bindings(snapshot: BrokerSnapshot) -> Iterable[Row]:
    rows = snapshot.managed.bindings if snapshot.managed else ()
    return (row for row in rows if row["source"] == topology.JOBS)


def _keys_of_agents(snapshot: BrokerSnapshot) -> Iterator[tuple[AgentLogin, set[str]]]:
    """Yield each agent with a queue, and the keys of the queue's bindings."""
    keys: dict[str, set[str]] = {}
    for row in snapshot.managed.queues if snapshot.managed else ():
        keys[row["name"]] = set()
    for binding in _job_bindings(snapshot):
        keys.setdefault(binding["destination"], set()).add(binding["routing_key"])
    for name, bound in sorted(keys.items()):
        if agent := AgentLogin.of_queue(name):
            yield agent, bound
