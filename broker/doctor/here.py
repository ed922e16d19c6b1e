"""Checks of this machine: who else may write what an agent goes by."""

from collections.abc import Iterator

from broker.doctor.finding import Finding, Severity, named
from broker.doctor.snapshot import BrokerSnapshot

_STICKY = 0o1000


def folders(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Agents share a folder as /tmp is shared; what is one agent's, nobody else may touch."""
    machine = snapshot.machine
    open_ones = {
        place.path for place in machine.shared if place.mode & 0o002 and not place.mode & _STICKY
    }
    if open_ones:
        text = f"everybody may remove what is another's in {named(open_ones)}"
        remedy = f"chmod 1777 {' '.join(sorted(open_ones))}"
        yield Finding(Severity.UNSAFE, "folders", text, remedy)
    private = {place.path for place in machine.private if place.mode & 0o077}
    if private:
        text = f"others can read or write what is one agent's alone: {named(private)}"
        yield Finding(Severity.UNSAFE, "folders", text, f"chmod go= {' '.join(sorted(private))}")


def keys(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """Whoever can write there says whose orders count."""
    machine = snapshot.machine
    for place in machine.keys:
        if place.open_to:
            text = f"PCM_TRUSTED_KEYS: {place.open_to} may write {place.path}"
            yield Finding(Severity.UNSAFE, "keys", text, f"chmod go-w {place.path}")
        if place.owner not in {0, machine.user}:
            text = f"PCM_TRUSTED_KEYS: {place.path} belongs to the user {place.owner}"
            yield Finding(Severity.UNSAFE, "keys", text, f"chown root {place.path}")
    if machine.private and not machine.keys:
        yield Finding(
            Severity.UNSAFE,
            "unsigned",
            "as it is set here (PCM_TRUSTED_KEYS), this machine's agents take orders that nobody"
            " signed: whoever may publish jobs commands it",
            "pcm keygen, and PCM_TRUSTED_KEYS=FOLDER for the agents",
        )


def settings(snapshot: BrokerSnapshot) -> Iterator[Finding]:
    """A file of settings that others may write to does not count, and nobody says so."""
    machine = snapshot.machine
    for place in machine.settings:
        if place.owner == machine.user and not place.open_to:
            continue
        text = f"{place.path} is not read: it is another user's, or others may write to it"
        remedy = f"chown {machine.user} {place.path}; chmod go-w {place.path}"
        yield Finding(Severity.HINT, "settings", text, remedy)
