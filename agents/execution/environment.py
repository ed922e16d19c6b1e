"""What commands find around them, and what the agent itself makes of how it was started.

Nothing reaches a command by chance, whoever started the agent, and from where: no setting or
password of the agent's, nothing that changes how programs are loaded, no open file, no ignored
signal.
"""

import os
import pwd
import resource
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o022
_LOCALE = ("LANG", "LANGUAGE", "LC_", "TZ")  # names, or how they begin with _
_FOLDERS = ("TMPDIR",)
_SESSION = (
    "DBUS_SESSION_BUS_ADDRESS",
    "DISPLAY",
    "WAYLAND_DISPLAY",
    "XAUTHORITY",
    "XDG_CURRENT_DESKTOP",
    "XDG_RUNTIME_DIR",
    "XDG_SESSION_ID",
    "XDG_SESSION_TYPE",
)
_OUR_FILES = 512  # an agent's own, and those of whoever speaks to it
_FILES_EACH = 8  # of a command
_MOST_FILES = 65536
_KEPT = {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}  # the last two: Python's

USUAL_FILES, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The soft limit of open files that the agent was started with: its commands get it, too."""


@dataclass(frozen=True)
class UserAccount:
    """A user of this machine, as the system knows them."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def variables(self) -> dict[str, str]:
        """Return what a login would set."""
        return {"HOME": self.home, "LOGNAME": self.name, "SHELL": self.shell, "USER": self.name}


def account(name: str) -> UserAccount:
    """Return a user, with all their groups.

    Raises:
        KeyError: there is no such user here.
    """
    found = pwd.getpwnam(name)
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    shell = found.pw_shell or "/bin/sh"
    return UserAccount(
        found.pw_name, found.pw_uid, found.pw_gid, groups, found.pw_dir or "/", shell
    )


def environment(*, session: bool, other: UserAccount | None = None) -> dict[str, str]:
    """Return all that commands get of the agent's environment, and what its user's login sets.

    Args:
        session: whether they belong to the session of a user who sits there.
        other: as whom they run, if not as the agent's user.
    """
    taken = [*_LOCALE, *(_SESSION if session else ()), *(_FOLDERS if other is None else ())]
    return {"PATH": PATH, **_login(other), **_chosen(taken)}


def _chosen(names: Iterable[str]) -> dict[str, str]:
    names = tuple(names)
    families = tuple(name for name in names if name.endswith("_"))
    return {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(families)
    }


def _login(other: UserAccount | None) -> dict[str, str]:
    if other is not None:
        return other.variables()
    try:
        found = pwd.getpwuid(os.geteuid())
    except KeyError:  # a container's user often has no name
        return {"HOME": os.environ.get("HOME", "/"), "SHELL": "/bin/sh"}
    return account(found.pw_name).variables()


def folder(variables: Mapping[str, str]) -> str:
    """Return where a command starts that does not say: at home, or where everybody may."""
    home = variables.get("HOME", "/")
    there = os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.X_OK)  # noqa: PTH112, PTH117 - Path's fails where it may not look
    return home if there else "/"


def settle(concurrency: int) -> None:
    """Put this process in order, whoever started it: files for it alone, signals, limits."""
    os.umask(0o077)
    # Were SIGCHLD ignored, nobody would know how commands end; others they would inherit.
    for number in signal.valid_signals() - _KEPT:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    needed = _OUR_FILES + _FILES_EACH * concurrency
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def give_back_files(pid: int) -> None:
    """Give a process that was just started the limit that the agent was started with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != USUAL_FILES and (hard == resource.RLIM_INFINITY or hard >= USUAL_FILES):
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (USUAL_FILES, hard))
        except OSError:  # it has ended
            return
