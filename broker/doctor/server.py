"""Checks of the broker: its version, limits, clock and encryption."""

import ipaddress
from collections.abc import Iterator

from broker.amqp.topology import AgentKind
from broker.doctor.finding import Finding, Severity, named
from broker.doctor.logins import allows
from broker.doctor.snapshot import BrokerSnapshot, Row
from broker.enrolment.rights import AgentLogin
from broker.history.queries.machines import duplicated
from broker.history.queries.workstations import MISSED_INTERVALS

_OLDEST = (3, 10)
# The first version of each series without the known holes that an agent's login can use.
_SAFE_VERSIONS = ((3, 13, 19), (4, 0, 24), (4, 1, 15), (4, 2, 10), (4, 3, 5))
_FILES_PER_QUEUE = 6
_MANY_QUORUM_QUEUES = 5000
_MIN_DISK_LIMIT = 1_000_000_000
_MIN_CONSUMER_TIMEOUT = 60_000  # ms; an agent acknowledges within seconds
_CLOCK_TOLERANCE = 5.0  # seconds
_HARMFUL_KEYS = {
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
_OUR_NAMES = ("pcm.jobs", "pcm.reports", "pcm.dead", "pcm.service.x", "pcm.interactive.x.y")


def unchecked(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Report what could not be checked."""
    for part in snapshot.unchecked:
        text = f"{part.what}: could not be checked: {part.why}"
        yield Finding(Severity.HINT, "unchecked", text, part.remedy)
    managed = snapshot.managed
    if managed and not managed.has_statistics:
        yield Finding(
            Severity.HINT,
            "unchecked",
            "alarms, file descriptors, listeners and connections: could not be checked: the broker"
            " collects no statistics",
            "remove management_agent.disable_metrics_collector from its configuration",
        )


def version(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """In versions with known holes, an agent's login can bypass its permissions."""
    number = snapshot.version
    if number < _OLDEST:
        yield Finding(
            Severity.WILL_BREAK,
            "version",
            f"RabbitMQ {snapshot.version_text} is older than 3.10",
            "update it",
        )
    safe = next((safe for safe in _SAFE_VERSIONS if safe[:2] == number[:2]), None)
    if number[:2] > max(_SAFE_VERSIONS)[:2] or (safe and number >= safe):
        return
    note = "; it does not protect against hostile agents" if number < (4, 2) else ""
    yield Finding(
        Severity.UNSAFE,
        "version",
        f"RabbitMQ {snapshot.version_text} has known holes, closed in 4.3.5 and 4.2.10{note}",
        "update to 4.3.5, 4.2.10 or newer",
    )


def support(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Streams and quorum queues are enabled."""
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
    """Connections from other machines are encrypted."""
    remedy = "use amqps:// (docs/security.md, TLS)"
    for url in snapshot.urls:
        if url.scheme != "amqps" and not is_loopback(url.host or ""):
            text = f"PCM_AMQP_URL: the connection to {url.host}:{url.port or 5672} is not encrypted"
            yield Finding(Severity.UNSAFE, "encryption", text, remedy)
    managed = snapshot.managed
    if managed is None:
        return
    if managed.url.scheme != "https" and not is_loopback(managed.url.host or ""):
        yield Finding(
            Severity.UNSAFE,
            "encryption",
            f"PCM_MANAGEMENT_URL: the connection to {managed.url.host} is not encrypted, and"
            " carries an administrator's password",
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
            f"the broker accepts unencrypted connections from other machines ({named(plain)})",
            "listeners.tcp = none, or only on 127.0.0.1, and listeners.ssl.default = 5671",
        )


def is_loopback(host: str) -> bool:
    """Whether an address is a loopback address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host in {"localhost", "localhost.localdomain"}


def descriptors(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Without enough file descriptors queues crash, and jobs do not reach all workstations."""
    if snapshot.managed is None:
        return
    totals = snapshot.managed.overview.get("object_totals", {})
    queues, connections = totals.get("queues", 0), totals.get("connections", 0)
    needed = _FILES_PER_QUEUE * queues + connections
    for node in snapshot.managed.nodes:
        limit = node.get("fd_total")
        if isinstance(limit, int) and 0 < limit < needed:
            yield Finding(
                Severity.WILL_BREAK,
                "descriptors",
                f"{node['name']} can open {limit:,} files; {queues:,} queues and {connections:,}"
                f" connections can need {needed:,}",
                f"LimitNOFILE={2 * needed} for its service (ulimit -n), and restart it",
            )
    quorum = sum(queue.get("type") == "quorum" for queue in snapshot.managed.queues)
    if quorum > _MANY_QUORUM_QUEUES:
        yield Finding(
            Severity.HINT,
            "descriptors",
            f"{quorum:,} quorum queues are too many for one cluster",
            "PCM_QUEUE_TYPE=classic (pcm enrol --queue-type classic) for new workstations",
        )


def alarms(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """While a node is low on disk space or memory, the broker accepts no messages."""
    for node in snapshot.managed.nodes if snapshot.managed else ():
        name = node["name"]
        if node.get("running") is False:
            text, remedy = f"{name} does not run", "start it, or remove it from the cluster"
            yield Finding(Severity.WILL_BREAK, "alarms", text, remedy)
        if node.get("partitions"):
            text = f"{name} is partitioned from {named(node['partitions'])}"
            yield Finding(Severity.WILL_BREAK, "alarms", text, "repair the network between them")
        for alarm, resource in (("disk_free_alarm", "disk space"), ("mem_alarm", "memory")):
            if node.get(alarm) is True:
                text = f"{name} is low on {resource}: nothing can be published"
                yield Finding(Severity.WILL_BREAK, "alarms", text, f"free some of its {resource}")
        limit = node.get("disk_free_limit")
        if isinstance(limit, int) and limit < _MIN_DISK_LIMIT:
            yield Finding(
                Severity.HINT,
                "alarms",
                f"{name} accepts messages until only {limit / 1e6:,.0f} MB of its disk are free:"
                " pending writes may not fit",
                "disk_free_limit.absolute = 2GB or more",
            )


def clocks(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Each workstation's clock decides when its jobs run."""
    offset = snapshot.clock_offset
    if offset is not None and abs(offset) > _CLOCK_TOLERANCE:
        difference = f"{abs(offset):,.0f} s {'ahead of' if offset > 0 else 'behind'}"
        text = f"the broker's clock is {difference} this machine's"
        yield Finding(Severity.HINT, "clocks", text, "set both by NTP")
    ahead = {
        row.name
        for row in snapshot.fleet or ()
        for agent in row.agents
        if agent.at > snapshot.now + _CLOCK_TOLERANCE
    }
    if ahead:
        text = f"clocks are ahead of this machine's: {named(ahead)}"
        yield Finding(Severity.WILL_BREAK, "clocks", text, "set them by NTP: jobs run too early")
    consuming = _consuming(snapshot)
    behind = {
        row.name
        for row in snapshot.fleet or ()
        if (service := row.service) and service.up and row.name in consuming
        if snapshot.now - service.at > MISSED_INTERVALS * service.interval
    }
    if behind:
        text = (
            "agents are connected, but by their workstation's clock their last check-in is too old:"
            f" {named(behind)}"
        )
        remedy = "set their clocks by NTP: jobs run too late, or expire"
        yield Finding(Severity.WILL_BREAK, "clocks", text, remedy)


def machines(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Each workstation's name belongs to one machine."""
    for row in snapshot.fleet or ():
        for agent in duplicated(row.machines):
            each = [
                f"{machine} {'receives nothing' if machine.standby else 'receives the jobs'}"
                for machine in row.machines
                if machine.agent == agent
            ]
            yield Finding(
                Severity.WILL_BREAK,
                "machines",
                f"several machines are named {row.name}: {'; '.join(each)}",
                "give each its own PCM_WORKSTATION",
            )


def renamed(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """No machine has left queues under a former name."""
    for row in snapshot.fleet or ():
        for former in row.former_names:
            yield Finding(
                Severity.WILL_BREAK,
                "renamed",
                f"the machine {row.name} was named {former}: jobs for {former} wait in queues that"
                " no agent consumes",
                f"pcm forget {former}",
            )


def _consuming(snapshot: BrokerSnapshot) -> set[str]:
    """Return the workstations whose service agent is connected."""
    agents = (
        AgentLogin.of_queue(row["name"])
        for row in (snapshot.managed.queues if snapshot.managed else ())
        if row.get("consumers")
    )
    return {agent.workstation for agent in agents if agent and agent.kind is AgentKind.SERVICE}


def unsigned(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """All agents require signatures, according to their check-ins."""
    unsigned_names = {
        row.name
        for row in snapshot.fleet or ()
        if not all(agent.signed_only for agent in row.agents)
    }
    if unsigned_names:
        count, known = len(unsigned_names), len(snapshot.fleet or ())
        yield Finding(
            Severity.UNSAFE,
            "unsigned",
            f"{count:,} of {known:,} workstations have agents that accept unsigned orders:"
            f" {named(unsigned_names)}",
            "PCM_TRUSTED_KEYS=FOLDER for both agents of each (pcm keygen)",
        )


def policies(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A policy can drop or redirect messages of our queues, whatever their arguments are."""
    for policy in snapshot.managed.policies if snapshot.managed else ():
        definition: Row = policy["definition"]
        if not any(allows(policy["pattern"], name) for name in _OUR_NAMES):
            continue
        where = f"the policy {policy['name']} ({policy['pattern']})"
        remedy = f"rabbitmqctl clear_policy -p {snapshot.virtual_host} {policy['name']}"
        if harmful := _HARMFUL_KEYS & definition.keys():
            text = f"{where} sets {named(harmful)} of our queues or exchanges: messages are lost"
            yield Finding(Severity.WILL_BREAK, "policies", text, remedy)
        timeout = definition.get("consumer-timeout")
        if isinstance(timeout, int) and timeout < _MIN_CONSUMER_TIMEOUT:
            text = f"{where} requeues jobs that an agent has not acknowledged in {timeout} ms"
            yield Finding(Severity.WILL_BREAK, "policies", text, remedy)
