"""Print packages for people, and as JSON."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from broker.cli.terminal import Column, print_table, printable
from schemas import Command, Manifest, SignedText
from schemas.packages.manifest import manifest_digest
from schemas.text import counted
from schemas.times import duration_text

if TYPE_CHECKING:
    from broker.packages.publishing import PublishedPackage

_UNITS = ("kB", "MB", "GB")
_STEP = 1000
_COLUMNS = (
    Column("name", least=12),
    Column("version"),
    Column("channels", least=8),
    Column("size", rank=1, right=True),
    Column("commands", rank=2, least=8),
    Column("signed by", rank=3, least=8),
    Column("comment", rank=4, least=10),
)


def size_text(size: float) -> str:
    """Return a number of bytes such as 12.3 MB."""
    if size < _STEP:
        return f"{size:.0f} bytes"
    steps = min(len(_UNITS), int(math.log(size, _STEP)))
    return f"{size / _STEP**steps:.1f} {_UNITS[steps - 1]}"


def print_packages(
    packages: "Sequence[PublishedPackage]",
    channels: Mapping[tuple[str, str], Sequence[str]],
    *,
    as_json: bool,
) -> None:
    """Print a table of packages, or a list as JSON."""
    if as_json:
        print(json.dumps([_fields(package, channels) for package in packages], indent=2))
    elif not packages:
        print("no packages")
    else:
        print_table(_COLUMNS, [_cells(package, channels) for package in packages])


def _fields(
    package: "PublishedPackage", channels: Mapping[tuple[str, str], Sequence[str]]
) -> dict[str, Any]:
    manifest = package.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "channels": sorted(channels.get((manifest.name, manifest.version), ())),
        "size": manifest.archive.size,
        "commands": sorted(manifest.commands),
        "signed_by": [signature.name for signature in package.signed.signatures],
        "comment": manifest.comment,
        "manifest": package.digest,
        "point": package.point.url,
    }


def _cells(
    package: "PublishedPackage", channels: Mapping[tuple[str, str], Sequence[str]]
) -> list[object]:
    fields = _fields(package, channels)
    return [
        fields["name"],
        fields["version"],
        ", ".join(fields["channels"]),
        size_text(fields["size"]),
        ", ".join(fields["commands"]),
        ", ".join(fields["signed_by"]),
        fields["comment"],
    ]


def print_manifest(
    manifest: Manifest, signed: SignedText, *, files: bool, as_json: bool, note: str
) -> None:
    """Print what a manifest says; `note`: whether its signatures are trusted."""
    digest = manifest_digest(signed.content)
    names = [signature.name for signature in signed.signatures]
    if as_json:
        left_out = () if files else ("files", "links", "folders")
        fields = manifest.model_dump(mode="json", exclude_none=True, exclude=set(left_out))
        trust = {"manifest": digest, "signed_by": names, "signatures": note}
        print(json.dumps({**fields, **trust}, indent=2))
        return
    sizes = f"{size_text(manifest.size)}, {size_text(manifest.archive.size)} packed"
    count = counted(len(manifest.files), "file")
    for field, value in (
        ("package", f"{manifest.name}@{manifest.version}"),
        ("publisher", manifest.publisher),
        ("comment", manifest.comment),
        ("platforms", ", ".join(sorted(manifest.platforms))),
        ("content", f"{count}, {sizes}"),
        ("requires", ", ".join(map(str, manifest.requires))),
        ("conflicts", ", ".join(map(str, manifest.conflicts))),
        ("manifest", digest),
        ("archive", manifest.archive.sha256),
        ("signed by", f"{', '.join(names)} ({note})" if names else "nothing is signed"),
    ):
        if value:
            print(printable(f"{field:<12}{value}"))
    for field, command in manifest.all_commands():
        print(printable(f"{field.removeprefix('commands.'):<12}{_command_text(command)}"))
    if files:
        print()
        for file in manifest.files:
            print(printable(f"{file.mode}  {file.size:>12}  {file.sha256}  {file.path}"))
        for link in manifest.links:
            print(printable(f"link  {link.path} -> {link.target}"))
        for folder in manifest.folders:
            print(printable(f"folder  {folder}"))


def _command_text(command: Command) -> str:
    context = "background" if command.background else "foreground"
    run_as = f", as {command.run_as}" if command.run_as else ""
    return f"{command}  ({context}{run_as}, at most {duration_text(command.timeout)})"
