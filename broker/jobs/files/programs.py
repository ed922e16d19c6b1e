"""What a job file names and a job carries: a package's command, and a script's content.

package: NAME@CHANNEL          or    package: {name: NAME@CHANNEL, command: repair}
script: FILE                         beside the job file
"""

from pathlib import Path
from typing import Any

from broker.cli.command_line import CommandError
from broker.packages.options import read_script
from broker.packages.session import load_keyring, load_points, package_errors
from broker.settings import WrongSetting
from schemas.errors import PcmError

_ADDED = {"environment", "secrets"}  # what a job may add to a package's command
_DEFAULT = "install"


class WrongProgram(PcmError):
    """A package or a script cannot be used; the text says why."""


def with_package(given: object, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields `package` and `command` of a job whose file names a package.

    Raises:
        WrongProgram: there is no such version or command, or a point cannot be used.
    """
    wish, name = _read_wish(given)
    own = fields.get("command") or {}
    if not isinstance(own, dict) or (unknown := own.keys() - _ADDED):
        field = f"command.{min(unknown)}" if isinstance(own, dict) else "command"
        raise WrongProgram(f"{field}: the package's command has its own; leave it out")
    from broker.packages.resolve import resolve_package  # few files have packages

    try:
        with package_errors():
            found = resolve_package(wish, name, load_points(), load_keyring())
    except (CommandError, WrongSetting) as error:
        raise WrongProgram(str(error)) from error
    command = found.command.model_dump(exclude_defaults=True)
    environment = own.get("environment") or {}
    if isinstance(environment, dict):
        environment = {**found.command.environment, **environment}
    return {
        "package": found.reference,
        "command": {**command, **own, "environment": environment},
    }


def _read_wish(given: object) -> tuple[str, str]:
    if isinstance(given, str):
        return given, _DEFAULT
    if isinstance(given, dict) and given.keys() <= {"name", "command"}:
        name, command = given.get("name"), given.get("command", _DEFAULT)
        if isinstance(name, str) and isinstance(command, str):
            return name, command
    raise WrongProgram("write NAME@CHANNEL, or {name: NAME@CHANNEL, command: COMMAND}")


def with_script(given: object, fields: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the field `command` of a job whose file names a script, relative to its folder.

    Raises:
        WrongProgram: the script cannot be read.
    """
    own = fields.get("command") or {}
    if not isinstance(given, str) or not isinstance(own, dict):
        raise WrongProgram("write the name of a file beside the job file")
    try:
        content = read_script(folder / given)
    except (OSError, ValueError) as error:
        text = error.strerror if isinstance(error, OSError) else None
        raise WrongProgram(f"{given[:200]}: {text or error}") from error
    return {"command": {"argv": [Path(given).name], **own, "script": content}}
