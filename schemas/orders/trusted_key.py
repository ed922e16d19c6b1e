"""Trusted public keys, and the orders that each of them is allowed to sign."""

import base64
from collections.abc import Collection, Iterable
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from schemas.message import Message
from schemas.names import Name, Target, Text
from schemas.orders.command import Command
from schemas.orders.job import Cancellation, Context, Job
from schemas.orders.signature import PublicKey, key_id
from schemas.times import Instant

if TYPE_CHECKING:
    from schemas.orders.schedule import ScheduleRemoval
    from schemas.orders.workstation import Pause


class TrustedKey(Message):
    """A public key, its owner, and its permitted orders; an empty field does not restrict.

    `commands` restricts which program is started, not what that program can be made to do.
    """

    kind: Literal["trusted_key"] = "trusted_key"
    name: Name = Field(description="the owner; keys with the same name belong to one signer")
    key: PublicKey
    targets: tuple[Target, ...] = Field(
        default=(), description="only workstations in these targets obey its orders"
    )
    contexts: tuple[Context, ...] = Field(default=(), description="only jobs of these contexts")
    commands: tuple[Text, ...] = Field(
        default=(),
        description="only these programs, by the job's argv[0]; * matches any text. A shell script"
        " only if it equals one of these",
    )
    variables: tuple[Text, ...] = Field(
        default=(), description="with commands: the environment variables that its jobs can set"
    )
    shell: bool = Field(
        default=True, description="whether shell scripts and sent scripts are allowed"
    )
    packages: tuple[Text, ...] = Field(
        default=(),
        description="only these packages, by name; * matches any text. A key with commands or"
        " without shell orders and publishes only packages that are named here; for a package's"
        " own commands, those limits do not count",
    )
    not_before: Instant | None = None
    not_after: Instant | None = None

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.not_before and self.not_after and self.not_before >= self.not_after:
            raise ValueError("not_after: must be after not_before")
        if self.variables and not self.commands:
            raise ValueError("variables: needs commands as well")
        return self

    @property
    def id(self) -> str:
        """The key's id, as signatures contain it."""
        return key_id(self.bytes())

    def bytes(self) -> bytes:
        """Return the raw key."""
        return base64.b64decode(self.key)

    def objection(
        self,
        order: "Job | Cancellation | Pause | ScheduleRemoval",
        here: Collection[Target],
        now: datetime,
    ) -> str:
        """Return why the key does not permit an order to a workstation now; "" if it does.

        Args:
            order: the order.
            here: all targets that include the workstation.
            now: the time by its clock.
        """
        if reason := self._objection_to_time(now):
            return reason
        if self.targets and not set(self.targets).intersection(here):
            return f"may order only {', '.join(map(str, self.targets))}"
        return self._objection_to(order) if isinstance(order, Job) else ""

    def objection_to_publisher(self, packages: Iterable[str], now: datetime) -> str:
        """Return why the key does not permit to publish packages now; "" if it does.

        It is asked of manifests, and of lists of channels for all packages that they name.
        """
        reasons = (self._objection_to_package(name) for name in packages)
        return self._objection_to_time(now) or next(filter(None, reasons), "")

    def _objection_to_time(self, now: datetime) -> str:
        if self.not_before is not None and now < self.not_before:
            return f"is not valid before {self.not_before}"
        if self.not_after is not None and now > self.not_after:
            return f"is not valid after {self.not_after}"
        return ""

    def _objection_to_package(self, name: str) -> str:
        is_limited = bool(self.packages or self.commands or not self.shell)
        if is_limited and not any(fnmatchcase(name, pattern) for pattern in self.packages):
            return f"may not order the package {name}"
        return ""

    def _objection_to(self, job: Job) -> str:
        if self.contexts and job.context not in self.contexts:
            return f"may order only {' and '.join(self.contexts)} jobs"
        if job.package is not None:
            names = [job.package.name, *(required.name for required in job.package.requires)]
            reason = next(filter(None, map(self._objection_to_package, names)), "")
        else:
            reason = self._objection_to_program(job.command)
        if reason:
            return reason
        if self.commands and (unknown := set(_variables(job.command)) - set(self.variables)):
            return f"may not set the environment variable {min(unknown)}"
        return ""

    def _objection_to_program(self, command: Command) -> str:
        if command.shell and not self.shell:
            return "may order no scripts for a shell"
        if command.script is not None and (self.commands or not self.shell):
            return "may order no scripts"
        if self.commands and not self._may_start(command):
            return f"may not order {command.argv[0][:80]!r}"
        return ""

    def _may_start(self, command: Command) -> bool:
        program = command.argv[0]
        if command.shell:  # a pattern would match any text appended to the script
            return program in self.commands
        if ".." in PurePosixPath(program).parts:
            return False
        return any(fnmatchcase(program, pattern) for pattern in self.commands)


def _variables(command: Command) -> Iterable[str]:
    return (*command.environment, *(command.secrets.names if command.secrets else ()))
