"""The state directory that a workstation's agents share, and each agent's private folder in it.

STATE_DIR/            every user may add files
    claims/           one file for each claimed foreground job, one for each interactive agent
    content/          the service agent's cache of packages: agents/content/cache.py
    service/          a private folder for each agent: ledger, lock, control socket
    interactive-ada/

The service agent's user owns it, so the service agent can rename files of others that block it.
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
_ATTEMPTS = 100  # another user may put a file there again and again
_MAX_LINKS = 40  # the kernel's limit


class StateError(PcmError):
    """The state directory cannot be used."""


class AlreadyRunning(StateError):
    """The agent is running already."""


CONTENT = "content"
"""The service agent's folder of packages, in the state directory."""
PACKAGES, FOREGROUND, COPIES = "packages", "foreground", "copies"
"""Its folders: the cache, what users' agents may read of it, and private copies for commands."""
_OPEN_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # follow no link, block on no pipe
_SHARED_MODE = 0o1777  # as /tmp: users may add files, and remove only their own


def shared_directory(path: Path) -> Path:
    """Create a folder that the agents of all users may write to; return it.

    Raises:
        StateError: it cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mask = os.umask(0)  # the mode is set by mkdir, so a crash cannot leave a closed folder
        try:
            path.mkdir(mode=_SHARED_MODE, exist_ok=True)
        finally:
            os.umask(mask)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return path


def private_directory(path: Path) -> Path:
    """Create a folder that only this user can access; return it.

    Another user's file of that name is set aside, if this user owns the state directory.

    Raises:
        StateError: it cannot be created, or another user could have written to it.
    """
    status = _own_directory(path, 0o700)
    if status.st_mode & 0o077:
        _refuse(path, f"has mode {_mode_text(status)}; it must be 0700: chmod 700 {path}")
    try:
        for file in path.iterdir():
            _check_file(file, file.lstat())
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return path


def claims_directory(state_dir: Path) -> Path:
    """Return the folder of claims; the state directory's owner creates it.

    Raises:
        StateError: it is missing or cannot be created, or another user could remove claims.
    """
    path = state_dir / "claims"
    owner_id = state_dir.stat().st_uid
    if os.geteuid() == owner_id:
        status = _own_directory(path, _SHARED_MODE)
    else:
        try:
            status = path.lstat()
        except FileNotFoundError:
            _refuse(path, "does not exist; the service agent creates it when it starts")
        except OSError as error:
            raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != owner_id:
            _refuse(
                path, f"is {_describe(status)}; it must be a folder of {_user_name(owner_id)}'s"
            )
    if _writable_by_others(status):
        _refuse(path, f"has mode {_mode_text(status)}; it must be 1777: chmod 1777 {path}")
    return path


def content_directories(state_dir: Path) -> None:
    """Create the service agent's folders of packages; users cannot list them, or write to them.

    Raises:
        StateError: one cannot be created.
    """
    content = state_dir / CONTENT
    for path, mode in (
        (content, 0o711),
        (content / PACKAGES, 0o700),
        (content / FOREGROUND, 0o711),
        (content / COPIES, 0o711),
    ):
        status = _own_directory(path, mode)
        if stat.S_IMODE(status.st_mode) != mode:
            path.chmod(mode)


def set_aside(path: Path) -> None:
    """Rename a file that blocks a path; only the folder's owner can do this.

    Raises:
        OSError: the file cannot be renamed.
    """
    status = path.lstat()
    aside = path.with_name(f".{path.name}.aside-{secrets.token_hex(8)}")
    path.rename(aside)
    _log.warning("state.set_aside", path=str(path), was=_describe(status), kept_as=aside.name)


def check_state_directory(state_dir: Path, *, service: bool) -> None:
    """Check that no other user can replace the state directory or the files in it.

    Raises:
        StateError: another user could; the text names the folder and the remedy.
    """
    for component, status in _path_components(state_dir.absolute()):
        if component == state_dir.resolve():
            _check_owner(component, status, service=service)
        elif status.st_uid not in (0, os.geteuid()):
            _refuse(component, f"belongs to {_user_name(status.st_uid)}; it must be root's")
        elif not stat.S_ISLNK(status.st_mode) and _writable_by_others(status):
            _refuse(component, f"has mode {_mode_text(status)}: others could replace its files")


def _check_owner(path: Path, status: os.stat_result, *, service: bool) -> None:
    owners = {os.geteuid()}
    if not service:  # the service agent's user owns the directory
        owners.add(0)
        with suppress(OSError):
            owners.add((path / "service").lstat().st_uid)
    if status.st_uid not in owners:
        user, owner = _user_name(os.geteuid()), _user_name(status.st_uid)
        if service:
            _refuse(path, f"belongs to {owner}; it must be {user}'s: chown {user} {path}")
        _refuse(path, f"belongs to {owner}; it must be {user}'s, root's or the service agent's")
    if _writable_by_others(status):
        _refuse(
            path,
            f"has mode {_mode_text(status)}: others could replace its files; chmod 1777 {path}",
        )


def _own_directory(path: Path, mode: int) -> os.stat_result:
    """Create the folder if it is missing; set aside a file of another kind or owner."""
    try:
        for _ in range(_ATTEMPTS):
            mask = os.umask(0)  # the mode is set by mkdir, so a crash cannot leave another one
            try:
                path.mkdir(mode=mode, exist_ok=True)
            except FileExistsError:
                pass  # not a folder: checked below
            finally:
                os.umask(mask)
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                return status
            if os.geteuid() not in (0, path.parent.stat().st_uid):
                break
            set_aside(path)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    user = _user_name(os.geteuid())
    raise StateError(
        f"PCM_STATE_DIR: {path}: is {_describe(status)}; it must be a folder of {user}'s"
    )


def _check_file(path: Path, status: os.stat_result) -> None:
    """Check that a private folder's file is this user's and that others cannot write to it."""
    if stat.S_ISLNK(status.st_mode):
        _refuse(path, "is a link; links are not allowed here: remove it")
    if status.st_uid != os.geteuid():
        user = _user_name(os.geteuid())
        _refuse(
            path,
            f"belongs to {_user_name(status.st_uid)}; it must be {user}'s: chown {user} {path}",
        )
    if status.st_mode & 0o022:
        _refuse(path, f"has mode {_mode_text(status)}: others could alter it; chmod go-w {path}")


def _path_components(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each folder and link of a path, in the order in which the kernel resolves them."""
    current, remaining = Path("/"), list(reversed(path.parts[1:]))
    links = 0
    try:
        yield current, current.lstat()
        while remaining:
            name = remaining.pop()
            component = current.parent if name == ".." else current / name
            status = component.lstat()
            yield component, status
            if not stat.S_ISLNK(status.st_mode):
                current = component
                continue
            links += 1
            if links > _MAX_LINKS:
                _refuse(path, os.strerror(errno.ELOOP))
            target = component.readlink()
            if target.is_absolute():
                current = Path("/")
            remaining.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error


def _writable_by_others(status: os.stat_result) -> bool:
    """Whether other users may remove a folder's files: it is writable and not sticky."""
    group = status.st_mode & stat.S_IWGRP and status.st_gid not in (0, os.getegid())
    return bool(group or status.st_mode & stat.S_IWOTH) and not status.st_mode & stat.S_ISVTX


def _refuse(path: Path, reason: str) -> NoReturn:
    raise StateError(f"PCM_STATE_DIR: {path}: {reason}")


def _describe(status: os.stat_result) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFLNK: "a link"}
    kind = kinds.get(stat.S_IFMT(status.st_mode), "a special file")
    return f"{kind} of {_user_name(status.st_uid)}'s"


def _mode_text(status: os.stat_result) -> str:
    return f"{stat.S_IMODE(status.st_mode):04o}"


def _user_name(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def open_own_directory(directory: Path) -> int:
    """Open a folder; return its file descriptor.

    Another user's folder is refused, since its socket could answer in this agent's name.

    Raises:
        OSError: it cannot be opened, or belongs to another user.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    if os.fstat(folder).st_uid != os.geteuid():
        os.close(folder)
        raise PermissionError(errno.EACCES, "is another user's")
    return folder


def sync_directory(directory: Path) -> None:
    """Sync a folder's entries to the disk.

    Raises:
        OSError: the sync failed.
    """
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def lock_directory(directory: Path) -> int:
    """Lock an agent's folder until this process ends; return the lock's file descriptor.

    Raises:
        AlreadyRunning: another process holds it.
        StateError: the folder cannot be written to.
    """
    path = directory / "lock"
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN_FLAGS, 0o600)
    except OSError as error:
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: is not a regular file")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(file, 20, 0).decode(errors="replace").strip()
        os.close(file)
        raise AlreadyRunning(
            f"the agent of {directory} is already running (process {holder})"
        ) from None
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:  # the disk is full, for example
        os.close(file)
        raise StateError(f"PCM_STATE_DIR: {path}: {error.strerror}") from error
    return file
