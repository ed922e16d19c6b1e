"""The manifest of a package: its commands, and the sum of each of its files."""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import to_json

from schemas.message import InvalidMessage, Message, explain
from schemas.names import Name, Text
from schemas.orders.command import Command, Platforms
from schemas.orders.job import Job
from schemas.orders.package import MAX_REQUIRED, PackageReference, PackageSpec, Sha256
from schemas.orders.signature import Signature, Signatures
from schemas.packages.paths import MAX_DEPTH, PackagePath, check_distinct
from schemas.versions import PackageVersion

FORMAT = 1
MANIFEST_LIMIT = 64 * 1024 * 1024
"""The greatest size of a manifest's text, in bytes."""
MAX_ENTRIES = 100_000
"""The greatest number of files, links and empty folders."""
MAX_SIZE = 64 * 1024**3
"""The greatest size of all files together, in bytes."""
MAX_RATIO = 200
FREE_SIZE = 16 * 1024 * 1024
"""Unpacked bytes for which the ratio does not count."""

INSTALL, UNINSTALL, REPAIR, UPGRADE = "install", "uninstall", "repair", "upgrade"
_DETECT_BEFORE = frozenset({INSTALL, UPGRADE})
_INSTALLING = frozenset({INSTALL, UPGRADE, REPAIR})


def _check_format(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value > FORMAT:
        raise ValueError(f"{value} is newer than this program reads: {FORMAT}; update it")
    return value


class Package(BaseModel):
    """What `package.toml` says about a package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: Name
    version: PackageVersion
    publisher: Text = Field(default="", max_length=200, description="who made it, for people")
    comment: Text = Field(default="", max_length=2000, description="its purpose, for people")
    platforms: Platforms = Field(
        default=frozenset(), description="platforms, such as linux or linux/x86_64; empty: any"
    )
    commands: dict[Name, Command] = Field(
        min_length=1, description="by name: install, uninstall, repair, upgrade, or any other"
    )
    detect: Command | None = Field(
        default=None,
        description="exits 0 if the package is there: then install and upgrade run nothing, and"
        " uninstall runs only then",
    )
    verify: Command | None = Field(
        default=None, description="runs after install, upgrade and repair; else the job is failed"
    )
    on_failed_verify: Literal["uninstall"] | None = Field(
        default=None, description="uninstall: undo what verify found wrong"
    )
    requires: tuple[PackageSpec, ...] = Field(
        default=(), max_length=MAX_REQUIRED, description="packages that are installed first"
    )
    conflicts: tuple[PackageSpec, ...] = Field(
        default=(), max_length=MAX_REQUIRED, description="packages that must not be there"
    )

    @field_validator("format", mode="before")
    @classmethod
    def _known_format(cls, value: Any) -> Any:
        return _check_format(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, command in self.all_commands():
            _check_command(field, command)
        if self.on_failed_verify is not None:
            if self.verify is None:
                raise ValueError("on_failed_verify: needs verify as well")
            if UNINSTALL not in self.commands:
                raise ValueError("on_failed_verify: needs commands.uninstall as well")
        for field, specs in (("requires", self.requires), ("conflicts", self.conflicts)):
            names = [spec.name for spec in specs]
            if self.name in names:
                raise ValueError(f"{field}: names the package itself")
            if len(set(names)) < len(names):
                raise ValueError(f"{field}: names a package twice; write NAME>=1,<2")
        return self

    def all_commands(self) -> Iterable[tuple[str, Command]]:
        """Yield all commands, each with its field."""
        yield from ((f"commands.{name}", command) for name, command in self.commands.items())
        yield from (
            (name, command)
            for name, command in (("detect", self.detect), ("verify", self.verify))
            if command is not None
        )

    def command(self, name: str) -> Command:
        """Return a named command, for the package's platforms if it names none.

        Raises:
            KeyError: there is no such command.
        """
        command = self.commands[name]
        if command.platforms or not self.platforms:
            return command
        return command.model_copy(update={"platforms": self.platforms})

    def detects_before(self, name: str) -> bool:
        """Whether a command is skipped where detection finds the package."""
        return self.detect is not None and name in _DETECT_BEFORE

    def verifies_after(self, name: str) -> bool:
        """Whether verification follows a command."""
        return self.verify is not None and name in _INSTALLING

    @staticmethod
    def needs_required(name: str) -> bool:
        """Whether the required packages are installed before a command."""
        return name in _INSTALLING


def _check_command(field: str, command: Command) -> None:
    if command.script is not None:
        raise ValueError(f"{field}.script: put the script into the package's folder")
    if command.secrets is not None:
        raise ValueError(f"{field}.secrets: a job has secrets, a package has none")
    if command.cwd is not None:
        raise ValueError(f"{field}.cwd: a package's command runs in the package's folder")


class Archive(BaseModel):
    """The archive of a package's files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Literal["tar+zstd"] = "tar+zstd"
    sha256: Sha256
    size: int = Field(ge=0, le=MAX_SIZE, description="bytes")


class PackageFile(BaseModel):
    """A file of a package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: PackagePath
    mode: Literal["0644", "0755"] = "0644"
    size: int = Field(ge=0, le=MAX_SIZE, description="bytes")
    sha256: Sha256


class PackageLink(BaseModel):
    """A symbolic link to another file or folder of the package."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: PackagePath
    target: Text = Field(min_length=1, max_length=1000, description="relative to the link's folder")

    @property
    def resolved(self) -> str:
        """The target's path in the package."""
        return posixpath.normpath(posixpath.join(posixpath.dirname(self.path), self.target))


class Manifest(Package):
    """A built package: what `package.toml` says, and what the archive has, down to each file.

    The archive is the only tar that belongs to the manifest: entries in the order of `entries`.
    """

    kind: Literal["package_manifest"] = "package_manifest"
    archive: Archive
    files: tuple[PackageFile, ...] = Field(default=(), max_length=MAX_ENTRIES)
    links: tuple[PackageLink, ...] = Field(default=(), max_length=MAX_ENTRIES)
    folders: tuple[PackagePath, ...] = Field(
        default=(), max_length=MAX_ENTRIES, description="folders that contain nothing"
    )

    @classmethod
    def read(cls, text: bytes | str) -> Self:
        """Read a manifest from JSON.

        Raises:
            InvalidMessage: it is not a manifest that this program reads; the text names the field.
        """
        if len(text) > MANIFEST_LIMIT:
            raise InvalidMessage(f"manifest: is over the limit of {MANIFEST_LIMIT:,} bytes")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise InvalidMessage(_newer_format(error) or explain(error)) from error
        except Exception as error:  # untrusted bytes must not stop their reader
            raise InvalidMessage(f"manifest: cannot be read: {error}") from error

    def body(self) -> bytes:
        """Return the manifest as JSON; its sum names the package."""
        return to_json(self, exclude_none=True)

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(file.size for file in self.files)

    def entries(self) -> "list[PackageFile | PackageLink | str]":
        """Return files, links and empty folders in the archive's order: by their paths' bytes."""
        everything: list[PackageFile | PackageLink | str] = [
            *self.files,
            *self.links,
            *self.folders,
        ]
        return sorted(everything, key=lambda entry: path_of(entry).encode())

    @model_validator(mode="after")
    def _safe(self) -> Self:
        count = len(self.files) + len(self.links) + len(self.folders)
        if count > MAX_ENTRIES:
            raise ValueError(f"files: {count:,} entries are over the limit of {MAX_ENTRIES:,}")
        if self.size > MAX_SIZE:
            raise ValueError(f"files: {self.size:,} bytes are over the limit of {MAX_SIZE:,}")
        if self.size > FREE_SIZE + MAX_RATIO * self.archive.size:
            raise ValueError(
                f"archive: {self.archive.size:,} bytes would unpack to {self.size:,}, over the"
                f" limit of {MAX_RATIO} times"
            )
        paths = [*(file.path for file in self.files), *(link.path for link in self.links)]
        check_distinct(paths, self.folders)
        self._check_links()
        self._check_programs()
        return self

    def _check_links(self) -> None:
        """Check that links stay inside: no path leads through a link, and targets exist."""
        if not self.links:
            return
        known = {path_of(entry) for entry in self.entries()}
        for path in tuple(known):
            while path := path.rpartition("/")[0]:
                known.add(path)
        for link in self.links:
            parts = link.target.split("/")
            if (
                link.target.startswith("/")
                or ".." in parts[_leading_dots(parts) :]
                or link.resolved not in known
                or link.resolved == link.path
            ):
                raise ValueError(
                    f"links: {link.path[:80]!r}: its target {link.target[:80]!r} is not a file or"
                    " folder of the package"
                )

    def _check_programs(self) -> None:
        modes: Mapping[str, str] = {file.path: file.mode for file in self.files}
        links = {link.path for link in self.links}
        for field, command in self.all_commands():
            program = command.argv[0]
            if command.shell or "/" not in program or program.startswith("/"):
                continue
            path = posixpath.normpath(program)
            if path not in modes and path not in links:
                raise ValueError(f"{field}: argv: {program!r} is not a file of the package")
            if modes.get(path) == "0644":
                raise ValueError(f"{field}: argv: {program!r} is not executable: use chmod +x")

    def objection(self, job: Job, reference: PackageReference) -> str:
        """Return why a job does not belong to the manifest; "" if it does."""
        if (reference.name, reference.version) != (self.name, self.version):
            return f"the manifest is of {self.name}@{self.version}"
        if reference.command not in self.commands:
            return f"the package has no command {reference.command}"
        own: dict[str, Any] = {"environment": {}, "secrets": None}  # a job may add these
        ordered, given = job.command, self.command(reference.command)
        missing = given.environment.items() - ordered.environment.items()
        if missing or ordered.model_copy(update=own) != given.model_copy(update=own):
            return f"the job's command is not the package's {reference.command}"
        return ""


def _leading_dots(parts: list[str]) -> int:
    count = 0
    while count < min(len(parts), MAX_DEPTH) and parts[count] == "..":
        count += 1
    return count


def _newer_format(error: ValidationError) -> str:
    """Return the text about a newer format, which counts over what else such a manifest has."""
    for found in error.errors(include_url=False):
        if found["loc"] == ("format",):
            return f"format: {found['msg'].removeprefix('Value error, ')}"
    return ""


def path_of(entry: "PackageFile | PackageLink | str") -> str:
    """Return the path of an entry."""
    return entry if isinstance(entry, str) else entry.path


def manifest_digest(text: bytes) -> str:
    """Return the sum by which jobs and points name a manifest."""
    return hashlib.sha256(text).hexdigest()


class SignedText(Message):
    """A manifest or a channel's list as a point keeps it: its exact text, and signatures of it."""

    kind: Literal["signed_text"] = "signed_text"
    text: Annotated[Text, Field(description="the JSON, exactly as it was signed")]
    signatures: Signatures = Field(default=(), max_length=8)

    @property
    def content(self) -> bytes:
        """The signed bytes."""
        return self.text.encode()

    def with_signature(self, signature: Signature) -> Self:
        """Return a copy with one more signature."""
        return self.model_copy(update={"signatures": (*self.signatures, signature)})
