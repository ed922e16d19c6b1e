"""Read `package.toml`, and the files beside it."""

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from broker.files.formats import LIMIT, Content, read_text
from broker.files.model_errors import explain_error
from broker.files.problems import Place, Problem, Unreadable, WrongFile, path_of
from schemas import Command, Manifest, Package
from schemas.packages.manifest import PackageFile, PackageLink
from schemas.packages.paths import check_path
from schemas.text import did_you_mean, nearest

DEFINITION = "package.toml"
_IGNORED = {DEFINITION, ".git"}  # at the top of the folder
_FIELD = re.compile(r"([\w-]+)(?:\.|: )")
_NO_SUM = "0" * 64
_SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class WrongPackage(WrongFile):
    """A package is wrong; each line of the text names the file, line, field and remedy."""


@dataclass(frozen=True)
class SourceFolder:
    """A package's folder: its definition, and what is packed, in no order.

    The files have no sums yet.
    """

    folder: Path
    package: Package
    files: list[PackageFile] = field(default_factory=list)
    links: list[PackageLink] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The size of all files, in bytes."""
        return sum(file.size for file in self.files)


def read_source(folder: str | Path) -> SourceFolder:
    """Read a package's folder, and check all but the content of its files.

    Raises:
        WrongPackage: the definition or a file is wrong; it names every error.
        OSError: something cannot be read.
    """
    folder = Path(folder)
    file = folder / DEFINITION
    content, package = _read_definition(file)
    source = SourceFolder(folder, package)
    problems: list[Problem] = []
    _collect(source, "", problems)
    if problems:
        raise WrongPackage(str(folder), problems)
    try:
        make_manifest(source, {"sha256": _NO_SUM, "size": source.size}, source.files)
    except ValidationError as error:
        raise _explain(file, content, error) from None
    return source


def make_manifest(
    source: SourceFolder, archive: dict[str, Any], files: list[PackageFile]
) -> Manifest:
    """Return the manifest of a folder; the files have their sums.

    Raises:
        ValidationError: the files do not fit the definition, or are over a limit.
    """
    return Manifest.model_validate(
        {
            **source.package.model_dump(),
            "archive": archive,
            "files": sorted(files, key=lambda file: file.path.encode()),
            "links": sorted(source.links, key=lambda link: link.path.encode()),
            "folders": sorted(source.folders, key=str.encode),
        }
    )


def _read_definition(file: Path) -> tuple[Content, Package]:
    with file.open("rb") as opened:
        body = opened.read(4 * LIMIT + 1)
    try:
        content = read_text(body.decode("utf-8-sig"), ".toml")
    except UnicodeDecodeError as error:
        line = body.count(b"\n", 0, error.start) + 1
        problem = Problem(line, "", "is not UTF-8: save it as UTF-8")
        raise WrongPackage(str(file), [problem]) from None
    except Unreadable as error:
        raise WrongPackage(str(file), [Problem(error.line, "", str(error))]) from None
    try:
        return content, Package.model_validate(content.documents[0])
    except ValidationError as error:
        raise _explain(file, content, error) from None


def _explain(file: Path, content: Content, error: ValidationError) -> WrongPackage:
    given, problems = content.documents[0], []
    for found in error.errors(include_url=False):
        explained = explain_error(given, found, _no_such_field)
        if explained is None:
            continue
        place, text = explained.place, explained.text
        if explained.is_about_a_field:
            place, text = _field_of_text(place, explained.value, text)
        whole: Place = (0, *place)
        named = path_of((*whole, *filter(None, [explained.missing])))
        problems.append(Problem(content.find_lines([whole]).get(whole), named, text))
    return WrongPackage(str(file), problems)


def _field_of_text(place: Place, value: Any, text: str) -> tuple[Place, str]:
    """Return the place that the beginning of a text names, and the rest of the text."""
    while (word := _FIELD.match(text)) and isinstance(value, dict) and word[1] in value:
        place, value, text = (*place, word[1]), value[word[1]], text[word.end() :]
    return place, text


def _no_such_field(place: Place) -> str:
    fields = Package.model_fields if len(place) == 1 else Command.model_fields
    return "no such field" + did_you_mean(nearest(str(place[-1]), fields))


def _collect(source: SourceFolder, inside: str, problems: list[Problem]) -> bool:
    """Collect the entries of a folder and all below; return whether there are any."""
    with os.scandir(source.folder / inside) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    found = [entry for entry in found if inside or entry.name not in _IGNORED]
    for entry in found:
        path = f"{inside}/{entry.name}" if inside else entry.name
        try:
            _add(source, check_path(path), entry, problems)
        except ValueError as error:
            problems.append(Problem(None, "", str(error)))
    return bool(found)


def _add(
    source: SourceFolder, path: str, entry: "os.DirEntry[str]", problems: list[Problem]
) -> None:
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        target = str(Path(entry.path).readlink())
        source.links.append(PackageLink(path=path, target=target))
    elif stat.S_ISDIR(status.st_mode):
        if not _collect(source, path, problems):
            source.folders.append(path)
    elif not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: is neither a file, a folder nor a symbolic link")
    elif status.st_mode & _SPECIAL_BITS:
        raise ValueError(f"{path}: has setuid, setgid or the sticky bit: chmod ug-s,-t {path}")
    else:
        mode: Any = "0755" if status.st_mode & 0o111 else "0644"
        # The path is checked, and there are many.
        source.files.append(
            PackageFile.model_construct(path=path, mode=mode, size=status.st_size, sha256=_NO_SUM)
        )
