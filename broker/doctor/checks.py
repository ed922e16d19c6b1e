"""All checks, and their findings."""

from collections.abc import Callable, Iterable

from broker.doctor import local_files, logins, server
from broker.doctor import topology as layout
from broker.doctor.finding import Finding, Severity
from broker.doctor.gather import DoctorSettings, gather
from broker.doctor.snapshot import BrokerSnapshot
from broker.settings import load

Check = Callable[[BrokerSnapshot], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    server.version,
    server.support,
    server.encryption,
    server.descriptors,
    server.alarms,
    server.clocks,
    server.machines,
    server.renamed,
    server.unsigned,
    server.policies,
    logins.guest,
    logins.agents_as_others,
    logins.topic_rows,
    logins.copies,
    logins.names,
    logins.default_exchange,
    logins.queues,
    logins.enrolled,
    layout.missing,
    layout.exchanges,
    layout.central_queues,
    layout.queue_types,
    layout.single_consumers,
    layout.listeners,
    layout.background,
    layout.bindings,
    layout.groups,
    layout.dead_letter_exchanges,
    layout.dead_letters,
    layout.abandoned,
    local_files.folders,
    local_files.keys,
    local_files.settings,
    server.unchecked,
)


def diagnose(settings: DoctorSettings | None = None) -> list[Finding]:
    """Check the broker and this machine; change nothing; return the findings, the worst first.

    Args:
        settings: the settings; default: from the environment.

    Raises:
        Unreachable: the broker is unreachable.
        BrokerError: it refuses.
    """
    return examine(gather(settings or load(DoctorSettings)))


def examine(snapshot: BrokerSnapshot) -> list[Finding]:
    """Return the findings of all checks, the worst first."""
    order = list(Severity)
    findings = (finding for check in CHECKS for finding in check(snapshot))
    return sorted(findings, key=lambda finding: order.index(finding.severity))
