"""Checks of exchanges, queues and bindings: what is there against what the topology says."""

from collections.abc import Iterable, Iterator

from broker.amqp import topology
from broker.amqp.topology import AgentKind
from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot, Managed, Row
from broker.enrolment.rights import AgentLogin
from schemas import Context

_ANYTHING = {"*", "#"}
_DECLARE = "pcm topology apply declares what is missing"


def groups_of(managed: Managed, queue: str) -> list[str]:
    """Return the groups by which a queue is bound to jobs."""
    keys = (row["routing_key"] for row in managed.bindings if row["destination"] == queue)
    return topology.groups_in(keys)


def missing(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """What is not there, nothing can be sent to or kept in."""
    if snapshot.missing:
        text = f"missing: {named(snapshot.missing)}"
        yield Finding(Severity.WILL_BREAK, "topology", text, _DECLARE)


def exchanges(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An exchange of another kind routes otherwise; an alternate one gets what nobody should."""
    found = {row["name"]: row for row in snapshot.managed.exchanges} if snapshot.managed else {}
    for exchange in topology.EXCHANGES:
        row = found.get(exchange.name)
        if row is None:
            continue
        if row["type"] != exchange.type.value or not row["durable"]:
            what = row["type"] + ("" if row["durable"] else ", and does not outlive the broker")
            text = f"the exchange {exchange.name} is {what}; it should be {exchange.type.value}"
            remedy = "delete it, then pcm topology apply"
            yield Finding(Severity.WILL_BREAK, "topology", text, remedy)
        if other := row["arguments"].get("alternate-exchange"):
            text = f"the exchange {exchange.name} hands what reaches no queue to {other}"
            remedy = "delete it, then pcm topology apply"
            yield Finding(Severity.UNSAFE, "topology", text, remedy)


def central_queues(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """The stream and the dead letters: of their types, and bound by all their keys."""
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
            text = f"the queue {queue.name} drops a letter that was looked at too often"
            remedy = "delete it once it is empty, then pcm topology apply"
            yield Finding(Severity.WILL_BREAK, "topology", text, remedy)
        wanted = {(source, key, ()) for source, key in queue.bindings} | {
            (topology.DEAD, "", _arguments(match)) for match in queue.matches
        }
        there = {
            (binding["source"], binding["routing_key"], _arguments(binding["arguments"]))
            for binding in managed.bindings
            if binding["destination"] == queue.name and binding["source"]
        }
        if lacking := {f"{source} {key}".strip() for source, key, _ in wanted - there}:
            text = (
                f"the queue {queue.name} is not bound by {named(lacking)}: such messages are lost"
            )
            yield Finding(Severity.WILL_BREAK, "topology", text, _DECLARE)


def _arguments(given: Row | dict[str, object]) -> tuple[tuple[str, object], ...]:
    return tuple(sorted((name, value) for name, value in given.items()))


def listeners(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Nothing but agents' queues is bound to the jobs."""
    for binding in _job_bindings(snapshot):
        name, key = binding["destination"], binding["routing_key"]
        if binding["destination_type"] != "queue" or AgentLogin.of_queue(name) is None:
            yield Finding(
                Severity.UNSAFE,
                "listeners",
                f"the {binding['destination_type']} {name} gets a copy of jobs ({key})",
                "find out whose it is, then delete it",
            )


def background(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """The rule: no interactive agent's queue is bound by a key that a background job can have."""
    for agent, keys in _keys_of_agents(snapshot):
        if agent.kind is AgentKind.SERVICE:
            continue
        bad = {key for key in keys if key.split(".")[0] in {Context.BACKGROUND, *_ANYTHING}}
        if bad:
            yield Finding(
                Severity.UNSAFE,
                "background",
                f"{agent.queue} of an interactive agent is bound by {named(bad)}: a user sees"
                " background jobs",
                f"pcm revoke {agent.workstation} --user {agent.user}, then pcm enrol; find out"
                " who may bind",
            )


def bindings(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """An agent's queue is bound by its own keys, all of them, and by no others."""
    lacking: set[str] = set()
    for agent, keys in _keys_of_agents(snapshot):
        groups = [group for key in keys if (group := key.partition(".group.")[2])]
        wanted = set(topology.binding_keys(agent.kind, agent.workstation, groups))
        foreign = (
            {key for key in keys - wanted if key.split(".")[0] == Context.FOREGROUND}
            if agent.kind is AgentKind.INTERACTIVE
            else keys - wanted
        )
        if foreign:
            yield Finding(
                Severity.UNSAFE,
                "bindings",
                f"{agent.queue} is bound by {named(foreign)}, and gets jobs that are not for it",
                f"pcm enrol {agent.workstation}, with its users and groups, binds it anew",
            )
        if wanted - keys:
            lacking.add(agent.queue)
    if lacking:
        yield Finding(
            Severity.WILL_BREAK,
            "bindings",
            f"queues lack bindings, and jobs do not reach them: {named(lacking)}",
            "start their agents again, or pcm enrol their workstations",
        )


def queue_types(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Agents' queues are quorum or classic queues; in a cluster, the latter are on one node.

    What the virtual host makes of a queue without a type does not matter: ours all name theirs.
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
    for kind, found in kinds.items():
        text = f"{named(found)}: {kind} queues do not hand each job to one reader, once"
        remedy = "delete them; their agents, or pcm enrol, make them anew"
        yield Finding(Severity.WILL_BREAK, "queue-types", text, remedy)
    if classic and len(managed.nodes) > 1:
        text = f"classic queues are on one node of the cluster, and away with it: {named(classic)}"
        remedy = "PCM_QUEUE_TYPE=quorum (pcm enrol --queue-type quorum), if they are not too many"
        yield Finding(Severity.HINT, "queue-types", text, remedy)


def dead_letter_exchanges(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """What is rejected goes to the administrators, and to nobody else."""
    astray = {
        f"{row['name']} (to {row['arguments'].get('x-dead-letter-exchange', 'nobody')})"
        for row in (snapshot.managed.queues if snapshot.managed else ())
        if AgentLogin.of_queue(row["name"])
        and row["arguments"].get("x-dead-letter-exchange") != topology.DEAD
    }
    if astray:
        yield Finding(
            Severity.UNSAFE,
            "dead-letters",
            f"what these queues give up does not go to {topology.DEAD}: {named(astray)}",
            "delete them once they are empty; their agents, or pcm enrol, make them anew",
        )


def letters(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Each is a job that somebody wanted done, or a message that nobody should have sent."""
    if snapshot.letters:
        text = f"dead letters wait: {snapshot.letters:,}"
        yield Finding(Severity.HINT, "dead-letters", text, "pcm dead list shows them")


def abandoned(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Queues of workstations that never checked in fill with jobs that nobody takes."""
    if snapshot.managed is None or snapshot.fleet is None or not snapshot.managed.has_statistics:
        return
    known = {row.name for row in snapshot.fleet}
    found = {
        row["name"]
        for row in snapshot.managed.queues
        if (agent := AgentLogin.of_queue(row["name"]))
        and agent.workstation not in known
        and not row.get("consumers")
    }
    if found:
        text = f"queues whose workstation never checked in, and nobody reads: {named(found)}"
        remedy = "start the agent, or pcm revoke the workstation"
        yield Finding(Severity.HINT, "abandoned", text, remedy)


def _job_bindings(snapshot: BrokerSnapshot) -> Iterable[Row]:
    rows = snapshot.managed.bindings if snapshot.managed else ()
    return (row for row in rows if row["source"] == topology.JOBS)


def _keys_of_agents(snapshot: BrokerSnapshot) -> Iterator[tuple[AgentLogin, set[str]]]:
    """Yield the agents that have queues, and by which keys these are bound to jobs."""
    keys: dict[str, set[str]] = {}
    for row in snapshot.managed.queues if snapshot.managed else ():
        keys[row["name"]] = set()
    for binding in _job_bindings(snapshot):
        keys.setdefault(binding["destination"], set()).add(binding["routing_key"])
    for name, bound in sorted(keys.items()):
        if agent := AgentLogin.of_queue(name):
            yield agent, bound
