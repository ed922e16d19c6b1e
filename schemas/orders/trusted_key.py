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
    shell: bool = Field(default=True, description="whether shell scripts are allowed")
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
        if self.not_before is not None and now < self.not_before:
            return f"is not valid before {self.not_before}"
        if self.not_after is not None and now > self.not_after:
            return f"is not valid after {self.not_after}"
        if self.targets and not set(self.targets).intersection(here):
            return f"may order only {', '.join(map(str, self.targets))}"
        return self._objection_to(order) if isinstance(order, Job) else ""

    def _objection_to(self, job: Job) -> str:
        command = job.command
        if self.contexts and job.context not in self.contexts:
            return f"may order only {' and '.join(self.contexts)} jobs"
        if command.shell and not self.shell:
            return "may order no scripts for a shell"
        if self.commands and not self._may_start(command):
            return f"may not order {command.argv[0][:80]!r}"
        if self.commands and (names := set(_variables(command)) - set(self.variables)):
            return f"may not set the environment variable {min(names)}"
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
