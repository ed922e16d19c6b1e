"""Write and read the file of a package: a tar of its archive and its signed manifest."""

import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from broker.content.archive import (
    DEFAULT_LEVEL,
    TIME,
    ArchiveWriter,
    Entry,
    Progress,
    WrongContent,
    check_archive,
    check_content,
)
from broker.packages.building.definition import SourceFolder, make_manifest, read_source
from broker.signing.signer import Signer
from schemas import InvalidMessage, Manifest, SignedText
from schemas.packages.manifest import (
    MANIFEST_LIMIT,
    PackageFile,
    manifest_digest,
    path_of,
)

SUFFIX = ".pcmpkg"
_ARCHIVE, _MANIFEST = "archive.tar.zst", "manifest.json"
_HEADER_SIZE = 512


@dataclass(frozen=True)
class BuiltPackage:
    """A package in a file."""

    path: Path
    manifest: Manifest
    signed: SignedText

    @property
    def digest(self) -> str:
        """The SHA-256 of the manifest's text, by which jobs name the package."""
        return manifest_digest(self.signed.content)

    @contextmanager
    def open_archive(self) -> Iterator[BinaryIO]:
        """Open the archive in the file.

        Raises:
            WrongContent: the file has changed.
            OSError: it cannot be read.
        """
        with _open(self.path) as tar:
            yield _member(tar, _ARCHIVE)


def build_package(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    signer: Signer | None = None,
    level: int = DEFAULT_LEVEL,
    progress: Progress | None = None,
) -> BuiltPackage:
    """Build the package of a folder; the same files give the same bytes.

    Args:
        folder: the folder with package.toml.
        output: the file, or the folder for NAME_VERSION.pcmpkg; default: the current folder. An
            existing file is replaced when the new one is complete.
        signer: signs the manifest.
        level: zstd's, from 1 to 19: higher is slower and smaller.
        progress: is called with numbers of processed bytes.

    Raises:
        WrongPackage: the definition or a file is wrong.
        WrongContent: a file changed while it was read.
        OSError: a file cannot be read or written.
    """
    source = read_source(folder)
    path = Path(output or ".")
    if path.is_dir():
        path /= f"{source.package.name}_{source.package.version}{SUFFIX}"
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("xb") as file:
            manifest, signed = _write(source, file, signer, level, progress)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return BuiltPackage(path, manifest, signed)


def _write(
    source: SourceFolder,
    file: BinaryIO,
    signer: Signer | None,
    level: int,
    progress: Progress | None,
) -> tuple[Manifest, SignedText]:
    file.write(bytes(_HEADER_SIZE))  # its size is known later
    files = []
    with ArchiveWriter(file, level) as writer:
        everything: list[Entry] = [*source.files, *source.links, *source.folders]
        for entry in sorted(everything, key=lambda entry: path_of(entry).encode()):
            if isinstance(entry, PackageFile):
                path = os.path.join(source.folder, entry.path)  # noqa: PTH118 - there are many
                with open(path, "rb", buffering=0) as opened:  # noqa: PTH123
                    files.append(writer.add_file(entry.path, entry.mode, opened, entry.size))
                if progress:
                    progress(entry.size)
            else:
                writer.add(entry)
        archive = writer.finish()
    file.write(bytes(-archive.size % _HEADER_SIZE))
    manifest = make_manifest(source, archive.model_dump(), files)
    signed = sign_text(manifest, signer)
    body = signed.body()
    file.write(_header(_MANIFEST, len(body)) + body + bytes(-len(body) % _HEADER_SIZE))
    file.write(bytes(2 * _HEADER_SIZE))
    file.seek(0)
    file.write(_header(_ARCHIVE, archive.size))
    return manifest, signed


def sign_text(manifest: Manifest, signer: Signer | None) -> SignedText:
    """Return a manifest's text with a signature, if there is a signer."""
    text = manifest.body()
    signatures = (signer.sign(manifest, text),) if signer else ()
    return SignedText(text=text.decode(), signatures=signatures)


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = size, TIME
    return info.tobuf(tarfile.GNU_FORMAT)  # of 512 bytes for any size


def read_package(path: str | Path) -> BuiltPackage:
    """Read a package's file; of the archive only its place is checked, see `check_package`.

    Raises:
        WrongContent: it is not a package.
        OSError: it cannot be read.
    """
    path = Path(path)
    with _open(path) as tar:
        _member(tar, _ARCHIVE)
        member = _member(tar, _MANIFEST)
        body = member.read(2 * MANIFEST_LIMIT + 1)
    manifest, signed = read_signed_manifest(body, str(path))
    return BuiltPackage(path, manifest, signed)


def read_signed_manifest(body: bytes, place: str) -> tuple[Manifest, SignedText]:
    """Read a manifest with its signatures, which are not verified.

    Raises:
        WrongContent: it is none; the text begins with the place.
    """
    if len(body) > 2 * MANIFEST_LIMIT:
        raise WrongContent(f"{place}: the manifest is over the limit of {MANIFEST_LIMIT:,} bytes")
    try:
        signed = SignedText.read(body)
        return Manifest.read(signed.text), signed
    except InvalidMessage as error:
        raise WrongContent(f"{place}: is not a manifest: {error}") from None


def check_package(package: BuiltPackage, *, progress: Progress | None = None) -> None:
    """Check the archive of a package: its sum, and each file.

    Raises:
        WrongContent: it is not the manifest's.
        OSError: it cannot be read.
    """
    with package.open_archive() as archive:
        check_archive(package.manifest, archive, progress=progress)
        archive.seek(0)
        check_content(package.manifest, archive)


@contextmanager
def _open(path: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(path, "r:") as tar:
            yield tar
    except tarfile.TarError as error:
        raise WrongContent(f"{path}: is not a package of pcm package build: {error}") from None


def _member(tar: tarfile.TarFile, name: str) -> BinaryIO:
    """Return the next file of a package's tar; the two are in a fixed order."""
    info = tar.next()
    file: IO[bytes] | None = None
    if info is not None and info.name == name and info.isreg():
        file = tar.extractfile(info)
    if file is None:
        raise WrongContent(f"{tar.name!s}: is not a package of pcm package build: no {name}")
    return file  # type: ignore[return-value] # a BufferedReader
