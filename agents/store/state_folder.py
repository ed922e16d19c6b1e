"""The state directory that the agents of a workstation share, and what is private in it.

STATE_DIR/            open to all who run an agent here
    claims/           one file for each foreground job that an agent took
    service/          one folder for each agent, its own: ledger, lock, control socket
    interactive-ada/

It belongs to the service agent's user, who can thereby set aside what others put in the way.
"""

import errno
import fcntl
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from broker.log import get_logger
from schemas.errors import PcmError

_log = get_logger()
_ATTEMPTS = 100  # somebody may put something in our way again and again, but not for ever
_MOST_LINKS = 40  # as many as the kernel follows


class StateError(PcmError):
    """The state directory cannot be used."""


class AlreadyRunning(StateError):
    """The agent is running already."""


_SAFELY = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # neither by a link, nor waiting at a pipe
_SHARED = 0o1777  # as /tmp: everyone may add, nobody may remove what is another's


def shared_directory(path: Path) -> Path:
    """Make a folder that the agents of all users may write to; return it.

    Raises:
        StateError: it cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0)  # at once in its mode: a crash must not leave it closed
        try:
            path.mkdir(mode=_SHARED, exist_ok=True)
        finally:
            os.umask(mask)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return path


def private_directory(path: Path) -> Path:
    """Make a folder that is ours alone; return it.

    What another user put there, to be in the way, is set aside where the state directory is ours.

    Raises:
        StateError: it cannot be made, or somebody else could have put something into it.
    """
    found = _own_directory(path, 0o700)
    if found.st_mode & 0o077:
        _refuse(path, f"has mode {_mode(found)}; it must be 0700: chmod 700 {path}")
    try:
        for inside in path.iterdir():
            _check_inside(inside, inside.lstat())
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return path


def claims_directory(state_dir: Path) -> Path:
    """Return the folder that the claims of all agents are in; whose state directory it is makes it.

    Raises:
        StateError: it cannot be made, or whoever made it could take away others' claims.
    """
    path = state_dir / "claims"
    keeper = state_dir.stat().st_uid
    if os.geteuid() == keeper:
        found = _own_directory(path, _SHARED)
    else:
        try:
            found = path.lstat()
        except FileNotFoundError:
            _refuse(path, "is not there yet; the service agent makes it when it starts")
        except OSError as error:
            raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != keeper:
            _refuse(path, f"is {_what(found)}; it must be a folder of {_name(keeper)}'s")
    if _open_to_others(found):
        _refuse(path, f"has mode {_mode(found)}; it must be 1777: chmod 1777 {path}")
    return path


def set_aside(path: Path) -> None:
    """Give what stands in the way another name; only whose folder it is in can do that.

    Raises:
        OSError: it cannot be done.
    """
    found = path.lstat()
    aside = path.with_name(f".{path.name}.aside-{secrets.token_hex(8)}")
    path.rename(aside)
    _log.warning("state.set_aside", path=str(path), was=_what(found), kept_as=aside.name)


def check(state_dir: Path, *, service: bool) -> None:
    """Make sure that nobody else can swap the state directory, or what agents keep in it.

    Raises:
        StateError: they could; the text names the folder, and what would be right.
    """
    for step, found in _steps(state_dir.absolute()):
        if step == state_dir.resolve():
            _check_last(step, found, service=service)
        elif found.st_uid not in (0, os.geteuid()):
            _refuse(step, f"belongs to {_name(found.st_uid)}; it must be root's")
        elif not stat.S_ISLNK(found.st_mode) and _open_to_others(found):
            _refuse(step, f"has mode {_mode(found)}: others could swap what is in it")


def _check_last(path: Path, found: os.stat_result, *, service: bool) -> None:
    keepers = {os.geteuid()}
    if not service:  # a user's agent is guest of the service's
        keepers.add(0)
        with suppress(OSError):
            keepers.add((path / "service").lstat().st_uid)
    if found.st_uid not in keepers:
        user, owner = _name(os.geteuid()), _name(found.st_uid)
        if service:
            _refuse(path, f"belongs to {owner}; it must be {user}'s: chown {user} {path}")
        _refuse(path, f"belongs to {owner}; it must be {user}'s, root's or the service agent's")
    if _open_to_others(found):
        _refuse(
            path, f"has mode {_mode(found)}: others could swap what is in it; chmod 1777 {path}"
        )


def _own_directory(path: Path, mode: int) -> os.stat_result:
    """Make a folder of ours, or find it; set aside what is not."""
    try:
        for _ in range(_ATTEMPTS):
            mask = os.umask(0)  # at once in its mode: a crash must not leave it otherwise
            try:
                path.mkdir(mode=mode, exist_ok=True)
            except FileExistsError:
                pass  # something else; we shall see what
            finally:
                os.umask(mask)
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                return found
            if os.geteuid() not in (0, path.parent.stat().st_uid):
                break
            set_aside(path)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    user = _name(os.geteuid())
    raise StateError(f"PCM_STATE_DIR: {path}: is {_what(found)}; it must be a folder of {user}'s")


def _check_inside(path: Path, found: os.stat_result) -> None:
    """Make sure that a file of a private folder was not put there, and is not open, to others."""
    if stat.S_ISLNK(found.st_mode):
        _refuse(path, "is a link; nothing here may be one: remove it")
    if found.st_uid != os.geteuid():
        user = _name(os.geteuid())
        _refuse(path, f"belongs to {_name(found.st_uid)}; it must be {user}'s: chown {user} {path}")
    if found.st_mode & 0o022:
        _refuse(path, f"has mode {_mode(found)}: others could alter it; chmod go-w {path}")


def _steps(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each folder and link on the way to a path, as the kernel goes it."""
    at, ahead = Path("/"), list(reversed(path.parts[1:]))
    links = 0
    try:
        yield at, at.lstat()
        while ahead:
            name = ahead.pop()
            step = at.parent if name == ".." else at / name
            found = step.lstat()
            yield step, found
            if not stat.S_ISLNK(found.st_mode):
                at = step
                continue
            links += 1
            if links > _MOST_LINKS:
                _refuse(path, os.strerror(errno.ELOOP))
            target = step.readlink()
            if target.is_absolute():
                at = Path("/")
            ahead.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error


def _open_to_others(found: os.stat_result) -> bool:
    """Whether others may take away what is in a folder: they may write, and it is not sticky."""
    group = found.st_mode & stat.S_IWGRP and found.st_gid not in (0, os.getegid())
    return bool(group or found.st_mode & stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX


def _refuse(path: Path, reason: str) -> NoReturn:
    raise StateError(f"PCM_STATE_DIR: {path}: {reason}")


def _what(found: os.stat_result) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a link"}
    return f"{kinds.get(stat.S_IFMT(found.st_mode), 'no folder')} of {_name(found.st_uid)}'s"


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"


def _name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def open_own(directory: Path) -> int:
    """Open a folder of this user's; return its file: who else made it could answer in our name.

    Raises:
        OSError: it cannot be opened, or is another user's.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if os.fstat(folder).st_uid != os.geteuid():
        os.close(folder)
        raise PermissionError(errno.EACCES, "is another user's")
    return folder


def sync_directory(directory: Path) -> None:
    """Bring the names in a folder to the disk.

    Raises:
        OSError: it cannot be done.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock(directory: Path) -> int:
    """Take the lock of an agent's folder for as long as this process lives; return its file.

    Raises:
        AlreadyRunning: another process holds it.
        StateError: the folder cannot be written to.
    """
    path = directory / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | _SAFELY, 0o600)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: is no plain file")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        raise AlreadyRunning(
            f"the agent of {directory} is running already (process {holder})"
        ) from None
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # the disk is full, say
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return file
