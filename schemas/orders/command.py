"""The command of a job."""

import re
import shlex
from collections.abc import Collection
from datetime import timedelta
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    field_validator,
    model_validator,
)

from schemas.message import Data
from schemas.names import Text
from schemas.orders.secrets import SIZE_LIMIT as SECRETS_SIZE_LIMIT
from schemas.orders.secrets import Secrets, check_string, check_variable, string_size
from schemas.times import Duration

System = Literal["linux", "macos", "windows", "freebsd"]
_MAX_LOGIN_LENGTH = 255
_NOT_IN_LOGIN = re.compile(r"[\s:/,\x00-\x1f\x7f]")
_MAX_EXIT_CODE = 255  # the system passes on eight bits
_FORMER_RESTART_CODES = frozenset({1641, 3010})  # Windows' codes, the default of 0.1
# execve(2) takes 2 MiB with the usual stack limit; the agent's own variables need a part of it.
_MAX_STRINGS_SIZE = 2 * 1024 * 1024 - 2 * SECRETS_SIZE_LIMIT
_POINTER_SIZE = 8
_MAX_NAME_SHOWN = 40
SCRIPT_LIMIT = 256 * 1024
"""The greatest size of a script, in bytes."""
_ALIASES = {"amd64": "x86_64", "arm64": "aarch64"}


def plain_machine(name: str) -> str:
    """Return the canonical name of a machine type, such as x86_64 for AMD64."""
    return _ALIASES.get(name.lower(), name.lower())


def _check_platform(text: str) -> str:
    system, slash, machine = text.lower().partition("/")
    known = get_args(System)
    if system not in known or (slash and not machine.replace("_", "").isalnum()):
        raise ValueError(
            f"{text!r} is not a platform: use {', '.join(known)}, or such as linux/x86_64"
        )
    return f"{system}/{plain_machine(machine)}" if slash else system


def _check_login(text: str) -> str:
    if (
        not text
        or len(text) > _MAX_LOGIN_LENGTH
        or text.startswith("-")
        or _NOT_IN_LOGIN.search(text)
    ):
        raise ValueError(f"{text!r} is not a user name")
    return text


Platform = Annotated[str, AfterValidator(_check_platform)]
# Sorted in JSON, so that equal commands have equal JSON in every process.
ExitCodes = Annotated[frozenset[int], PlainSerializer(sorted, return_type=list[int])]
Login = Annotated[Text, AfterValidator(_check_login)]
Platforms = Annotated[frozenset[Platform], PlainSerializer(sorted, return_type=list[str])]


class Command(BaseModel):
    """A program to run, and the meaning of its exit codes.

    The program is started exactly as named: `argv[0]` with a slash is that file; without one it
    is looked up in the absolute folders of PATH. There is no shell unless `shell` is set; then
    `argv` has one item, the script for `/bin/sh -c`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    argv: tuple[Text, ...] = Field(min_length=1)
    shell: bool = False
    script: Data | None = Field(
        default=None,
        description="a program that is sent with the job and begins with #!; the agent runs it from"
        " a private folder, and argv[0] is its name",
    )
    cwd: Text | None = Field(default=None, description="working directory, absolute")
    environment: dict[Text, Text] = Field(default_factory=dict)
    secrets: Secrets | None = Field(
        default=None, description="environment values that only the addressed agents can open"
    )
    timeout: Duration = Field(
        default=timedelta(hours=1), description="seconds, after which the command is ended"
    )
    success_exit_codes: ExitCodes = frozenset({0})
    restart_exit_codes: ExitCodes = Field(
        default=frozenset(),
        description="exit codes of a success after which the machine must be restarted",
    )
    platforms: Platforms = Field(
        default=frozenset(), description="platforms, such as linux or linux/x86_64; empty: any"
    )
    background: bool = Field(
        default=False, description="run by the service agent only, never shown to a user"
    )
    user_input_required: bool = False
    survives_agent: bool = Field(
        default=False,
        description="keeps running when its agent ends; the agent's next start waits for it",
    )
    leaves_processes: bool = Field(
        default=False,
        description="what it leaves running when it ends by itself is never touched, such as a"
        " service; default: it is ended, and reported",
    )
    rerun_interrupted: bool = Field(
        default=False,
        description="is started again after its agent or the machine ended while it ran; at most"
        " five starts in all",
    )
    user_may_stop: bool = Field(default=False, description="a user can stop it while it runs")
    run_as: Login | None = Field(
        default=None,
        description="the user account under which it runs; background commands only, and only"
        " where the service agent runs as root; default: the agent's user",
    )

    @field_validator("argv")
    @classmethod
    def _runnable(cls, argv: tuple[str, ...]) -> tuple[str, ...]:
        if not argv[0].strip():
            raise ValueError("the program's name is empty")
        for number, argument in enumerate(argv):
            check_string(f"argument {number}", argument)
        return argv

    @field_validator("script")
    @classmethod
    def _has_interpreter(cls, script: bytes | None) -> bytes | None:
        if script is None:
            return None
        if len(script) > SCRIPT_LIMIT:
            raise ValueError(
                f"has {len(script):,} bytes; at most {SCRIPT_LIMIT:,} are sent with a job: make a"
                " package of it"
            )
        if not script.startswith(b"#!/"):
            raise ValueError("must begin with #! and its interpreter, such as #!/bin/sh")
        return script

    @field_validator("cwd")
    @classmethod
    def _absolute(cls, cwd: str | None) -> str | None:
        if cwd is not None and not cwd.startswith("/"):
            raise ValueError(f"{cwd!r} must be an absolute path")
        return cwd

    @field_validator("environment")
    @classmethod
    def _settable(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            check_variable(name)
            check_string(name[:_MAX_NAME_SHOWN], f"{name}={value}")
        return environment

    @field_validator("timeout")
    @classmethod
    def _positive(cls, timeout: timedelta) -> timedelta:
        if not timedelta(0) < timeout <= timedelta(days=365):
            raise ValueError("must be more than 0 and at most 365 days")
        return timeout

    @field_validator("success_exit_codes", "restart_exit_codes")
    @classmethod
    def _exit_codes(cls, codes: frozenset[int]) -> frozenset[int]:
        if codes == _FORMER_RESTART_CODES:  # each job of an earlier version has them
            return frozenset()
        for code in codes:
            if not 0 <= code <= _MAX_EXIT_CODE:
                raise ValueError(f"{code} cannot occur: an exit code is from 0 to {_MAX_EXIT_CODE}")
        return codes

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.background and self.user_input_required:
            raise ValueError(
                "user_input_required: a background command has no user; leave out one of the two"
            )
        if self.background and self.user_may_stop:
            raise ValueError(
                "user_may_stop: a background command has no user; leave out one of the two"
            )
        if self.run_as is not None and not self.background:
            raise ValueError(
                "run_as: a foreground command runs as its user; make it background, or leave it out"
            )
        duplicates = set(self.secrets.names).intersection(self.environment) if self.secrets else ()
        if duplicates:
            raise ValueError(f"secrets: {min(duplicates)} is in environment as well; leave out one")
        if self.shell and len(self.argv) != 1:
            raise ValueError("argv: with shell, give the whole script as one argument")
        if self.script is not None and (self.shell or "/" in self.argv[0]):
            raise ValueError("script: argv[0] is its name, without a folder, and shell is not set")
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        size = sum(string_size(text) + _POINTER_SIZE for text in (*self.argv, *variables))
        if size > _MAX_STRINGS_SIZE:
            raise ValueError(
                f"argv: arguments and variables have {size} bytes with their pointers; a system"
                f" takes at most {_MAX_STRINGS_SIZE}: pass them in a file"
            )
        return self

    def narrowed(self, workstations: Collection[str]) -> Self:
        """Return the command with the secrets of some workstations' agents only."""
        if self.secrets is None:
            return self
        return self.model_copy(update={"secrets": self.secrets.only(workstations)})

    def __str__(self) -> str:
        return self.argv[0] if self.shell else shlex.join(self.argv)
