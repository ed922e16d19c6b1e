"""Environment values that only the agents for which they are sealed can read."""

from collections.abc import Collection, Mapping
from typing import Self

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, field_validator

from schemas.names import Text

SIZE_LIMIT = 64 * 1024
"""The greatest total size of a job's values, in bytes."""


_MAX_STRING_SIZE = 128 * 1024
"""The greatest size of an argument or variable, with its final NUL: MAX_ARG_STRLEN of execve(2)."""


def string_size(text: str) -> int:
    """Return the size of an argument or variable, in bytes with its final NUL."""
    return len(text.encode()) + 1


def check_string(name: str, text: str) -> None:
    """Check the size of an argument or variable; ValueError if no system takes it."""
    size = string_size(text)
    if size > _MAX_STRING_SIZE:
        raise ValueError(
            f"{name} has {size - 1} bytes; a system takes at most {_MAX_STRING_SIZE - 1}: pass it"
            " in a file"
        )


def check_variable(name: str) -> str:
    """Return the name of an environment variable; ValueError if it cannot be one."""
    if not name or "=" in name:
        raise ValueError(f"{name!r} cannot be an environment variable")
    return name


class Secrets(BaseModel):
    """Secret values, encrypted once with their own key, and that key sealed for each agent."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[Text, ...] = Field(min_length=1, description="the environment variables' names")
    sealed: Base64Bytes = Field(description="NaCl's secret box of a JSON object, in base64")
    keys: Mapping[str, Base64Bytes] = Field(
        min_length=1, description="NaCl's sealed box of its key, for each AGENT@WORKSTATION"
    )

    @field_validator("names")
    @classmethod
    def _settable(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError("a variable is named twice")
        for name in names:
            check_string(name[:40], f"{name}=" + "x" * SIZE_LIMIT)
        return tuple(map(check_variable, names))

    def workstations(self) -> set[str]:
        """Return the workstations that have an agent for which they are sealed."""
        return {agent.rpartition("@")[2] for agent in self.keys}

    def only(self, workstations: Collection[str]) -> Self:
        """Return a copy without the keys of other workstations; unchanged if no key is left."""
        names = set(workstations)
        keys = {agent: key for agent, key in self.keys.items() if agent.rpartition("@")[2] in names}
        return self.model_copy(update={"keys": keys}) if keys else self
