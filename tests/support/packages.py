"""Packages for tests: archives and their manifests, made of names and contents."""

import hashlib
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from broker.content.archive import ArchiveWriter
from schemas import Manifest
from schemas.orders.package import Sha256
from schemas.packages.manifest import PackageFile, PackageLink

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["EMPTY", "listed", "manifest_of", "package", "source_folder", "zstd"]

EMPTY: Sha256 = hashlib.sha256(b"").hexdigest()


def package(
    files: dict[str, bytes], links: dict[str, str] | None = None, folders: tuple[str, ...] = ()
) -> tuple[Manifest, bytes]:
    """Return the manifest and the archive of a package with these files."""
    file = BytesIO()
    entries: dict[str, bytes | PackageLink | str] = dict(files)
    entries |= {path: PackageLink(path=path, target=to) for path, to in (links or {}).items()}
    entries |= {path: path for path in folders}
    written = []
    with ArchiveWriter(file) as writer:
        for path, entry in sorted(entries.items(), key=lambda item: item[0].encode()):
            if isinstance(entry, bytes):
                written.append(writer.add_file(path, "0644", BytesIO(entry), len(entry)))
            else:
                writer.add(entry)
        archive = writer.finish()
    manifest = manifest_of(
        archive=archive.model_dump(),
        files=[entry.model_dump() for entry in written],
        links=[{"path": path, "target": to} for path, to in (links or {}).items()],
        folders=folders,
    )
    return manifest, file.getvalue()


def manifest_of(**fields: Any) -> Manifest:
    """Return a manifest with some fields."""
    given = {
        "name": "demo",
        "version": "1.0",
        "commands": {"install": {"argv": ["true"], "background": True}},
        "archive": {"sha256": EMPTY, "size": 0},
    }
    return Manifest.model_validate({**given, **fields})


def listed(path: str, content: bytes = b"", mode: str = "0644") -> PackageFile:
    """Return the entry of a file."""
    sha256 = hashlib.sha256(content).hexdigest()
    return PackageFile.model_validate(
        {"path": path, "mode": mode, "size": len(content), "sha256": sha256}
    )


DEFINITION = """\
name = "{name}"
version = "{version}"
comment = "for tests"
{more}
[commands.install]
argv = ["./setup.sh", "install"]
background = true

[commands.uninstall]
argv = ["./setup.sh", "uninstall"]
background = true
{tables}
"""


def source_folder(folder: Path, *, version: str = "1.0", more: str = "", tables: str = "") -> Path:
    """Make a package's folder, or change the definition of one; the package is named as it.

    Args:
        folder: the folder.
        version: the package's version.
        more: further lines above the tables.
        tables: further tables.
    """
    folder.mkdir(exist_ok=True)
    text = DEFINITION.format(name=folder.name, version=version, more=more, tables=tables)
    (folder / "package.toml").write_text(text)
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "file").write_bytes(b"content")
    script = folder / "setup.sh"
    script.write_text('#!/bin/sh\necho "$1 $PCM_PACKAGE_NAME $PCM_PACKAGE_VERSION"\n')
    script.chmod(0o755)
    return folder
