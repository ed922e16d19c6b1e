"""Checks of this machine: who else can write to an agent's files."""

from collections.abc import Iterator

from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot

_STICKY = 0o1000


def folders(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Shared folders must have the sticky bit; an agent's own files must be private."""
    local = snapshot.local_files
    unprotected = {
        file.path for file in local.shared if file.mode & 0o002 and not file.mode & _STICKY
    }
    if unprotected:
        text = f"everybody can remove other users' files in {named(unprotected)}"
        remedy = f"chmod 1777 {' '.join(sorted(unprotected))}"
        yield Finding(Severity.UNSAFE, "folders", text, remedy)
    exposed = {file.path for file in local.private if file.mode & 0o077}
    if exposed:
        text = f"other users can read or write an agent's files: {named(exposed)}"
        yield Finding(Severity.UNSAFE, "folders", text, f"chmod go= {' '.join(sorted(exposed))}")


def keys(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A user who can write to the trusted keys can add keys."""
    local = snapshot.local_files
    for file in local.keys:
        if file.open_to:
            text = f"PCM_TRUSTED_KEYS: {file.open_to} can write to {file.path}"
            yield Finding(Severity.UNSAFE, "keys", text, f"chmod go-w {file.path}")
        if file.owner not in {0, local.user}:
            text = f"PCM_TRUSTED_KEYS: {file.path} belongs to the user {file.owner}"
            yield Finding(Severity.UNSAFE, "keys", text, f"chown root {file.path}")
    if local.private and not local.keys:
        yield Finding(
            Severity.UNSAFE,
            "unsigned",
            "without PCM_TRUSTED_KEYS, this machine's agents accept unsigned orders from every"
            " login that can publish jobs",
            "pcm keygen, and PCM_TRUSTED_KEYS=FOLDER for the agents",
        )


def settings(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A file of settings that others can write to is ignored without a message."""
    local = snapshot.local_files
    for file in local.settings:
        if file.owner == local.user and not file.open_to:
            continue
        text = f"{file.path} is not read: it belongs to another user, or others can write to it"
        remedy = f"chown {local.user} {file.path}; chmod go-w {file.path}"
        yield Finding(Severity.HINT, "settings", text, remedy)
