"""What a job says about packages: the package of its command, and conditions on packages."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from schemas.names import Name, check_name
from schemas.versions import PackageVersion, check_version, version_key

Sha256 = Annotated[
    str,
    Field(pattern=r"^[0-9a-f]{64}$"),
    WithJsonSchema({"type": "string", "pattern": "^[0-9a-f]{64}$"}),
]
"""A SHA-256 sum, as 64 lower-case hexadecimal digits."""

MAX_REQUIRED = 100
"""The greatest number of packages that a job installs before its own."""

_NAME = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(.*)", re.DOTALL)
_LIMIT = re.compile(r"\s*(<=|>=|!=|==|<|>|=)\s*(\S+)\s*")
_MAX_SPEC_LENGTH = 500

Operator = Literal["<", "<=", "=", "!=", ">=", ">"]


class VersionLimit(BaseModel):
    """A limit of a version, such as `<2.1`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operator: Operator
    version: PackageVersion

    def allows(self, version: str) -> bool:
        """Return whether a version is within the limit."""
        key, limit = version_key(version), version_key(self.version)
        match self.operator:
            case "<":
                return key < limit
            case "<=":
                return key <= limit
            case "=":
                return key == limit
            case "!=":
                return key != limit
            case ">=":
                return key >= limit
            case ">":
                return key > limit

    def __str__(self) -> str:
        return self.operator + self.version


class PackageSpec(BaseModel):
    """A package, and which of its versions: in JSON one string, such as `NAME>=1.2,<2`."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={"type": "string", "pattern": "^[A-Za-z0-9_-]{1,63}.*$"},
    )

    name: Name
    limits: tuple[VersionLimit, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse text such as `NAME` or `NAME>=1.2,<2`; raise ValueError for other text."""
        return cls.model_validate(text)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _NAME.fullmatch(value) if len(value) <= _MAX_SPEC_LENGTH else None
        if match is None:
            raise ValueError(
                f"{value[:80]!r} is not a package: write NAME, or such as NAME>=1.2,<2"
            )
        name, limits = match.groups()
        return {"name": check_name(name), "limits": _read_limits(limits) if limits else ()}

    def allows(self, version: str) -> bool:
        """Return whether a version of the package is meant."""
        return all(limit.allows(version) for limit in self.limits)

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return self.name + ",".join(map(str, self.limits))


def _read_limits(text: str) -> tuple[dict[str, str], ...]:
    limits = []
    for part in text.split(","):
        match = _LIMIT.fullmatch(part)
        if match is None:
            raise ValueError(f"{part.strip()!r} is not a limit: write such as >=1.2 or <2")
        operator, version = match.groups()
        limits.append({"operator": operator.replace("==", "="), "version": check_version(version)})
    return tuple(limits)


class PackageCondition(BaseModel):
    """Whether a package is on the workstation: in JSON `installed:SPEC` or `missing:SPEC`.

    What counts is the last inventory of the workstation's agents: the packages that they ran, and
    what detection says now.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        json_schema_extra={
            "type": "string",
            "pattern": "^(installed|missing):[A-Za-z0-9_-]{1,63}.*$",
        },
    )

    scope: Literal["installed", "missing"]
    spec: PackageSpec

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse `installed:SPEC` or `missing:SPEC`; raise ValueError for other text."""
        return cls.model_validate(text)

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        scope, _, spec = value.partition(":")
        if scope not in {"installed", "missing"}:
            raise ValueError(
                f"{value[:80]!r} is not a condition: write installed:NAME<2.1 or missing:NAME"
            )
        return {"scope": scope, "spec": PackageSpec.parse(spec)}

    def holds(self, installed: "dict[str, str]") -> bool:
        """Return whether it holds, given the versions of the installed packages by name."""
        version = installed.get(self.spec.name)
        is_there = version is not None and self.spec.allows(version)
        return is_there == (self.scope == "installed")

    @model_serializer
    def _to_text(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f"{self.scope}:{self.spec}"


class RequiredPackage(BaseModel):
    """One version of a package, by the sum of its manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    version: PackageVersion
    manifest: Sha256 = Field(description="the SHA-256 of the manifest's text")

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class PackageReference(RequiredPackage):
    """The package of a job's command: exactly this content is run, whoever serves it.

    The job carries the command as well, so that times, users and keys are judged without the
    manifest. An agent compares it with the manifest's.
    """

    command: Name = Field(default="install", description="the command's name in the manifest")
    requires: tuple[RequiredPackage, ...] = Field(
        default=(),
        max_length=MAX_REQUIRED,
        description="packages that are installed first, in this order, where detection misses them",
    )
    channel: Name | None = Field(
        default=None, description="the channel whose list named the version"
    )
    channel_serial: int | None = Field(
        default=None,
        ge=1,
        lt=2**53,
        description="the serial number of that list; an agent refuses one lower than it has seen",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.channel is None) != (self.channel_serial is None):
            raise ValueError("channel: needs channel_serial, and the other way round")
        names = [package.name for package in self.requires]
        if self.name in names or len(set(names)) < len(names):
            raise ValueError("requires: names a package twice")
        return self
