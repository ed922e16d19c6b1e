"""The environment of commands, and the agent's own process limits and signals.

A command inherits nothing by accident, however the agent was started: no setting or password of
the agent, no variable that changes how programs are loaded, no open file, no ignored signal.
"""

import os
import pwd
import resource
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from agents.execution.processes.subreaper import become_subreaper

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
UMASK = 0o022
_LOCALE = ("LANG", "LANGUAGE", "LC_", "TZ")  # names; a prefix ends with _
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
_AGENT_FILES = 512  # the agent's own, and its clients' connections
_FILES_PER_COMMAND = 8
_MAX_FILES = 65536
_UNCHANGED_SIGNALS = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGPIPE,  # Python ignores this one and the next
    signal.SIGXFSZ,
}

INITIAL_FILE_LIMIT, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
"""The soft limit of open files with which the agent was started; its commands get it, too."""


@dataclass(frozen=True)
class UserAccount:
    """A user account of this machine."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    shell: str

    def variables(self) -> dict[str, str]:
        """Return the variables that a login would set."""
        return {"HOME": self.home, "LOGNAME": self.name, "SHELL": self.shell, "USER": self.name}


def account(name: str) -> UserAccount:
    """Return the account of a user, with all its groups.

    Raises:
        KeyError: there is no such user on this machine.
    """
    found = pwd.getpwnam(name)
    groups = tuple(os.getgrouplist(found.pw_name, found.pw_gid))
    shell = found.pw_shell or "/bin/sh"
    return UserAccount(
        found.pw_name, found.pw_uid, found.pw_gid, groups, found.pw_dir or "/", shell
    )


def command_environment(*, session: bool, other: UserAccount | None = None) -> dict[str, str]:
    """Return the variables for commands: those of a login, and a few of the agent's own.

    Args:
        session: whether the commands belong to a user's session.
        other: the account under which they run, if not the agent's own.
    """
    inherited = [*_LOCALE, *(_SESSION if session else ()), *(_FOLDERS if other is None else ())]
    return {"PATH": PATH, **_login(other), **_inherited(inherited)}


def _inherited(names: Iterable[str]) -> dict[str, str]:
    names = tuple(names)
    prefixes = tuple(name for name in names if name.endswith("_"))
    return {
        name: value
        for name, value in os.environ.items()
        if name in names or name.startswith(prefixes)
    }


def _login(other: UserAccount | None) -> dict[str, str]:
    if other is not None:
        return other.variables()
    try:
        found = pwd.getpwuid(os.geteuid())
    except KeyError:  # a container's user often has no name
        return {"HOME": os.environ.get("HOME", "/"), "SHELL": "/bin/sh"}
    return account(found.pw_name).variables()


def default_cwd(variables: Mapping[str, str]) -> str:
    """Return the working directory for a command that names none: home if accessible, else /."""
    home = variables.get("HOME", "/")
    usable = os.path.isabs(home) and os.path.isdir(home) and os.access(home, os.X_OK)  # noqa: PTH112, PTH117 - Path's raises where access is denied
    return home if usable else "/"


def set_up_process(concurrency: int) -> None:
    """Set this process's umask, signals and limit of open files, however it was started.

    It becomes the parent of its commands' orphans.
    """
    become_subreaper()
    os.umask(0o077)
    # With SIGCHLD ignored, exit codes would be lost; commands inherit the other ignored signals.
    for number in signal.valid_signals() - _UNCHANGED_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    needed = _AGENT_FILES + _FILES_PER_COMMAND * concurrency
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = _MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, _MAX_FILES)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def restore_file_limit(pid: int) -> None:
    """Give a newly started process the limit of open files with which the agent was started."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != INITIAL_FILE_LIMIT and (
        hard == resource.RLIM_INFINITY or hard >= INITIAL_FILE_LIMIT
    ):
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (INITIAL_FILE_LIMIT, hard))
        except OSError:  # it has ended
            return
