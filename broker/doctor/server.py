"""Checks of the broker itself: its version, its limits, its clock, and how it is reached."""

import ipaddress
import re
from collections.abc import Iterator

from broker.amqp.topology import AgentKind
from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot, Row
from broker.enrolment.rights import AgentLogin

_LEAST = (3, 10)
# The first version of each series in which the known holes are closed that an agent's login opens.
_FLOORS = ((3, 13, 19), (4, 0, 24), (4, 1, 15), (4, 2, 10), (4, 3, 5))
_FILES_A_QUEUE = 6
_MANY_QUORUM_QUEUES = 5000
_LEAST_DISK = 1_000_000_000
_LEAST_ACKNOWLEDGE = 60_000  # ms: an agent acknowledges within seconds
_CLOCK = 5.0  # seconds that clocks may differ by, and nobody notices
_MISSED = 2.5  # intervals without a check-in
_HARMFUL = {
    "message-ttl",
    "expires",
    "max-length",
    "max-length-bytes",
    "overflow",
    "dead-letter-exchange",
    "dead-letter-routing-key",
    "delivery-limit",
    "alternate-exchange",
}
_OURS = ("pcm.jobs", "pcm.reports", "pcm.dead", "pcm.service.x", "pcm.interactive.x.y")


def unseen(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """What could not be looked at: it may be anything."""
    for one in snapshot.unseen:
        text = f"{one.what}: could not be looked at: {one.why}"
        yield Finding(Severity.HINT, "unseen", text, one.remedy)
    managed = snapshot.managed
    if managed and not managed.has_statistics:
        yield Finding(
            Severity.HINT,
            "unseen",
            "alarms, file descriptors, listeners and connections: could not be looked at: the"
            " broker keeps no statistics",
            "leave management_agent.disable_metrics_collector out of its configuration",
        )


def version(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Below the floor, an agent's login is enough for what its permissions refuse."""
    number = snapshot.version
    if number < _LEAST:
        yield Finding(
            Severity.WILL_BREAK,
            "version",
            f"RabbitMQ {snapshot.version_text} is older than 3.10",
            "update it",
        )
    floor = next((floor for floor in _FLOORS if floor[:2] == number[:2]), None)
    if number[:2] > max(_FLOORS)[:2] or (floor and number >= floor):
        return
    old = "; it works, but not against hostile agents" if number < (4, 2) else ""
    yield Finding(
        Severity.UNSAFE,
        "version",
        f"RabbitMQ {snapshot.version_text} has known holes, closed in 4.3.5 and 4.2.10{old}",
        "update to 4.3.5, 4.2.10 or newer",
    )


def support(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Without streams and quorum queues there is nothing to keep jobs and reports in."""
    flags = {"stream_queue": "streams", "quorum_queue": "quorum queues"}
    for flag in snapshot.managed.flags if snapshot.managed else ():
        if flag["name"] in flags and flag.get("state") != "enabled":
            yield Finding(
                Severity.WILL_BREAK,
                "support",
                f"the broker has no {flags[flag['name']]} (feature flag {flag['name']})",
                f"rabbitmqctl enable_feature_flag {flag['name']}",
            )


def encryption(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """What is not encrypted, who can listen can read: the password first."""
    remedy = "use amqps:// (docs/security.md, TLS)"
    for url in snapshot.urls:
        if url.scheme != "amqps" and not is_loopback(url.host or ""):
            text = f"PCM_AMQP_URL: {url.host}:{url.port or 5672} is reached without encryption"
            yield Finding(Severity.UNSAFE, "encryption", text, remedy)
    managed = snapshot.managed
    if managed is None:
        return
    if managed.url.scheme != "https" and not is_loopback(managed.url.host or ""):
        yield Finding(
            Severity.UNSAFE,
            "encryption",
            f"PCM_MANAGEMENT_URL: {managed.url.host} is reached without encryption, with a login"
            " that may do everything",
            "use https:// (management.ssl in its configuration)",
        )
    plain = {
        f"port {listener['port']} on {listener['ip_address']}"
        for listener in managed.overview.get("listeners", ())
        if listener["protocol"] == "amqp" and not is_loopback(listener["ip_address"])
    }
    if plain:
        yield Finding(
            Severity.UNSAFE,
            "encryption",
            f"the broker takes connections without encryption from other machines ({named(plain)})",
            "listeners.tcp = none, or on 127.0.0.1 alone, and listeners.ssl.default = 5671",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"localhost", "localhost.localdomain"}


def descriptors(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Where files run out, queues crash: a job reaches some and not others."""
    if snapshot.managed is None:
        return
    totals = snapshot.managed.overview.get("object_totals", {})
    queues, connections = totals.get("queues", 0), totals.get("connections", 0)
    needed = _FILES_A_QUEUE * queues + connections
    for node in snapshot.managed.nodes:
        have = node.get("fd_total")
        if isinstance(have, int) and 0 < have < needed:
            yield Finding(
                Severity.WILL_BREAK,
                "descriptors",
                f"{node['name']} may open {have:,} files; {queues:,} queues and {connections:,}"
                f" connections may need {needed:,}",
                f"LimitNOFILE={2 * needed} for its service (ulimit -n), and start it again",
            )
    quorum = sum(queue.get("type") == "quorum" for queue in snapshot.managed.queues)
    if quorum > _MANY_QUORUM_QUEUES:
        yield Finding(
            Severity.HINT,
            "descriptors",
            f"{quorum:,} quorum queues are more than one cluster should have",
            "PCM_QUEUE_TYPE=classic (pcm enrol --queue-type classic) for new workstations",
        )


def alarms(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """While a node is low on disk or memory, the broker takes no message from anybody."""
    for node in snapshot.managed.nodes if snapshot.managed else ():
        name = node["name"]
        if node.get("running") is False:
            text, remedy = f"{name} does not run", "start it, or take it out of the cluster"
            yield Finding(Severity.WILL_BREAK, "alarms", text, remedy)
        if node.get("partitions"):
            text = f"{name} is parted from {named(node['partitions'])}"
            yield Finding(Severity.WILL_BREAK, "alarms", text, "mend the network between them")
        for alarm, of in (("disk_free_alarm", "disk"), ("mem_alarm", "memory")):
            if node.get(alarm) is True:
                text = f"{name} is low on {of}: nothing can be published"
                yield Finding(Severity.WILL_BREAK, "alarms", text, f"make room on its {of}")
        limit = node.get("disk_free_limit")
        if isinstance(limit, int) and limit < _LEAST_DISK:
            yield Finding(
                Severity.HINT,
                "alarms",
                f"{name} goes on until {limit / 1e6:,.0f} MB of its disk are free: what it is"
                " writing then may not fit",
                "disk_free_limit.absolute = 2GB or more",
            )


def clocks(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Times of jobs are decided by the clock of each workstation."""
    if snapshot.ahead is not None and abs(snapshot.ahead) > _CLOCK:
        differ = f"{abs(snapshot.ahead):,.0f} s {'ahead' if snapshot.ahead > 0 else 'behind'}"
        text = f"the broker's clock is {differ} of this machine's"
        yield Finding(Severity.HINT, "clocks", text, "set both by NTP")
    ahead = {
        row.name
        for row in snapshot.fleet or ()
        for agent in row.agents
        if agent.at > snapshot.now + _CLOCK
    }
    if ahead:
        text = f"clocks are ahead of this machine's: {named(ahead)}"
        yield Finding(Severity.WILL_BREAK, "clocks", text, "set them by NTP: jobs run too early")
    consuming = _consuming(snapshot)
    behind = {
        row.name
        for row in snapshot.fleet or ()
        if (service := row.service) and service.up and row.name in consuming
        if snapshot.now - service.at > _MISSED * service.interval
    }
    if behind:
        text = (
            "agents are connected, but by the clock of their workstation checked in too long ago:"
            f" {named(behind)}"
        )
        remedy = "set their clocks by NTP: jobs run too late, or expire unseen"
        yield Finding(Severity.WILL_BREAK, "clocks", text, remedy)


def _consuming(snapshot: BrokerSnapshot) -> set[str]:
    """Return the workstations whose service agent is connected."""
    agents = (
        AgentLogin.of_queue(row["name"])
        for row in (snapshot.managed.queues if snapshot.managed else ())
        if row.get("consumers")
    )
    return {agent.workstation for agent in agents if agent and agent.kind is AgentKind.SERVICE}


def unsigned(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """What agents say of it themselves; each agent of a workstation has its own settings."""
    open_ones = {
        row.name
        for row in snapshot.fleet or ()
        if not all(agent.signed_only for agent in row.agents)
    }
    if open_ones:
        count, known = len(open_ones), len(snapshot.fleet or ())
        yield Finding(
            Severity.UNSAFE,
            "unsigned",
            f"{count:,} of {known:,} workstations have agents that take orders that nobody signed:"
            f" {named(open_ones)}",
            "PCM_TRUSTED_KEYS=FOLDER for both agents of each (pcm keygen)",
        )


def policies(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A policy can drop or divert what is in our queues, whatever they were declared with."""
    for policy in snapshot.managed.policies if snapshot.managed else ():
        definition: Row = policy["definition"]
        if not any(_matches(policy["pattern"], name) for name in _OURS):
            continue
        where = f"the policy {policy['name']} ({policy['pattern']})"
        remedy = f"rabbitmqctl clear_policy -p {snapshot.virtual_host} {policy['name']}"
        if harmful := _HARMFUL & definition.keys():
            text = f"{where} sets {named(harmful)} of our queues or exchanges: jobs or records go"
            yield Finding(Severity.WILL_BREAK, "policies", text, remedy)
        timeout = definition.get("consumer-timeout")
        if isinstance(timeout, int) and timeout < _LEAST_ACKNOWLEDGE:
            text = f"{where} takes a job from an agent that has not acknowledged it in {timeout} ms"
            yield Finding(Severity.WILL_BREAK, "policies", text, remedy)


def _matches(pattern: str, name: str) -> bool:
    try:
        return re.search(pattern, name) is not None
    except re.error:
        return True
