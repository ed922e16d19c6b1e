"""Warn about settings that have no effect, and about passwords that others can read."""

import os
import stat
import sys
from collections.abc import Iterable, Iterator

from broker.settings import (
    ENV_FILE,
    HistorySettings,
    ManagementSettings,
    WrongSetting,
    read_env_file,
)
from schemas.text import did_you_mean, nearest

_PREFIX = "PCM_"
# The names in agents.settings, which this package does not import.
_AGENT_SETTINGS = (
    "accept_offers",
    "approvals",
    "cache_size",
    "check_in",
    "concurrency",
    "countdown",
    "drain",
    "enrolled",
    "fetch_rate",
    "fetch_windows",
    "groups",
    "keep",
    "large_download",
    "login_pause",
    "missing_after",
    "no_window",
    "output_limit",
    "points",
    "points_ca",
    "queue_expires",
    "queue_type",
    "remind",
    "share_cache",
    "signed_within",
    "state_dir",
    "stop_grace",
    "takeover_grace",
    "user",
    "watch_interval",
    "windows",
    "workstation",
)
# Variables of compose.yaml, and of the commands that agents run.
_OTHERS = (
    "amqp_port",
    "broker_password",
    "broker_user",
    "job_id",
    "management_port",
    "package_dir",
    "package_name",
    "package_version",
)
_TESTS = "PCM_TEST_"
_SIZE_LIMIT = 1024 * 1024
_PASSWORDS = ("PCM_AMQP_URL", "PCM_MANAGEMENT_URL", "PCM_HISTORY_URL")


def known_names() -> set[str]:
    """Return the names of all variables that `pcm`, `pcm-agent` or their set-up reads."""
    fields = (HistorySettings.model_fields, ManagementSettings.model_fields)
    names = {name for kind in fields for name in kind}.union(_AGENT_SETTINGS, _OTHERS)
    return {_PREFIX + name.upper() for name in names}


def print_warnings(program: str) -> None:
    """Print the warnings on stderr, one a line."""
    for text in warnings():
        print(f"{program}: {text}", file=sys.stderr)


def warnings() -> list[str]:
    """Return the warnings about the environment and the `.env` file of the current folder."""
    return [*_unknown("the environment", os.environ), *_env_file()]


def _env_file() -> Iterator[str]:
    try:
        status = ENV_FILE.lstat()
    except OSError:
        return
    try:
        values = read_env_file()
    except WrongSetting:
        return  # it is an error of a command that needs settings
    if values is None:
        if _mentions_settings(status):
            yield f"{ENV_FILE}: is not read: {_why_ignored(status)}"
        return
    yield from _unknown(str(ENV_FILE), values)
    others = "everybody" if status.st_mode & stat.S_IROTH else ""
    if status.st_mode & stat.S_IRGRP and status.st_gid not in (0, os.getegid()):
        others = others or "its group"
    exposed = [name for name in _PASSWORDS if _has_password(values.get(name) or "")]
    if others and exposed:
        yield f"{ENV_FILE}: {others} can read the password in {exposed[0]}: chmod go= {ENV_FILE}"


def _mentions_settings(status: os.stat_result) -> bool:
    """Whether an ignored file seems to be ours: a folder can have another program's `.env`."""
    if not stat.S_ISREG(status.st_mode):
        return True
    try:
        file = os.open(ENV_FILE, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(file, "rb") as content:
            return _PREFIX.encode() in content.read(_SIZE_LIMIT).upper()
    except OSError:
        return True


def _why_ignored(status: os.stat_result) -> str:
    user = os.geteuid()
    if not stat.S_ISREG(status.st_mode):
        return "it must be a regular file"
    if status.st_uid != user:
        return f"it belongs to user {status.st_uid} and must be yours: chown {user} {ENV_FILE}"
    if status.st_mode & 0o022:
        return f"others can write to it: chmod go-w {ENV_FILE}"
    if status.st_nlink > 1:
        return "it has a second name (hard link): copy it"
    return "it cannot be opened"


def _unknown(where: str, names: Iterable[str]) -> Iterator[str]:
    known = known_names()
    for name in sorted(names):
        upper = name.upper()
        if not upper.startswith(_PREFIX) or upper.startswith(_TESTS) or upper in known:
            continue
        hint = did_you_mean(nearest(upper, known)) or "; see --help for the settings"
        yield f"{name}: unknown setting in {where}, ignored{hint}"


def _has_password(text: str) -> bool:
    from yarl import URL

    try:
        return any(URL(part).password for part in text.replace(",", " ").split())
    except ValueError:
        return True
