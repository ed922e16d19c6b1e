"""Paths inside a package: which are allowed, and where a distribution point keeps what."""

import unicodedata
from collections.abc import Iterable
from typing import Annotated

from pydantic import AfterValidator

from schemas.names import check_text

MAX_PATH_BYTES = 1000
MAX_NAME_BYTES = 255
MAX_DEPTH = 32


def check_path(text: str) -> str:
    """Return a path inside a package: relative, with `/`, and plain names.

    Raises:
        ValueError: it leads out of the folder, or some system cannot have it.
    """
    check_text(text)
    names = text.split("/")
    if text.startswith("/"):
        raise ValueError(f"{text[:80]!r}: is absolute; paths are relative to the package's folder")
    if ".." in names:
        raise ValueError(f"{text[:80]!r}: leads out of the package's folder")
    if "" in names or "." in names:
        raise ValueError(f"{text[:80]!r}: has an empty name, or '.'")
    if "\\" in text or not text.isprintable():
        raise ValueError(f"{text[:80]!r}: has a backslash or a control character")
    if len(names) > MAX_DEPTH:
        raise ValueError(f"{text[:80]!r}: is {len(names)} levels deep; {MAX_DEPTH} are allowed")
    if len(text.encode()) > MAX_PATH_BYTES or any(
        len(name.encode()) > MAX_NAME_BYTES for name in names
    ):
        raise ValueError(
            f"{text[:80]!r}: is too long; a name has up to {MAX_NAME_BYTES} bytes, a path up to"
            f" {MAX_PATH_BYTES}"
        )
    return text


PackagePath = Annotated[str, AfterValidator(check_path)]
"""A path inside a package, such as bin/setup."""


def fold(path: str) -> str:
    """Return what two paths have in common that some file system takes for the same."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def check_distinct(files: Iterable[str], folders: Iterable[str]) -> None:
    """Check that no two paths are the same, also where case does not count.

    A file cannot be a folder as well; a folder that contains something is not listed.

    Raises:
        ValueError: two paths collide; the text names both.
    """
    seen: dict[str, tuple[str, bool]] = {}
    parents: set[str] = set()
    listed = [*((path, False) for path in files), *((path, True) for path in folders)]
    for path, is_folder in listed:
        key = fold(path)
        if key in seen:
            raise ValueError(_collision(path, seen[key][0]))
        seen[key] = path, is_folder
    known: dict[str, str] = {}
    for path, _ in listed:
        parent = path
        while (parent := parent.rpartition("/")[0]) and parent not in parents:
            parents.add(parent)
            key = fold(parent)
            if known.setdefault(key, parent) != parent:
                raise ValueError(_collision(parent, known[key]))
            if key in seen:
                raise ValueError(_collision(parent, seen[key][0]))


def _collision(one: str, other: str) -> str:
    if one == other:
        return f"{one[:80]!r}: is there twice"
    return f"{one[:80]!r}: differs from {other[:80]!r} only in case or accents"


def archive_path(sha256: str) -> str:
    """Return where a point keeps an archive."""
    return f"sha256/{sha256[:2]}/{sha256[2:]}"


def manifest_path(name: str, version: str) -> str:
    """Return where a point keeps the signed manifest of a version."""
    return f"packages/{name}/{version}.manifest"


def channel_path(name: str) -> str:
    """Return where a point keeps the signed list of a channel."""
    return f"channels/{name}.list"
