"""What this machine is, in the words of a command's platforms."""

import platform

_SYSTEMS = {"darwin": "macos"}


def here() -> frozenset[str]:
    """Return the platforms that this machine answers to, such as linux and linux/x86_64."""
    system = platform.system().lower()
    system = _SYSTEMS.get(system, system)
    return frozenset({system, f"{system}/{platform.machine().lower()}"})
