"""Archives: what is packed comes out, and nothing else does."""

import hashlib
import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.content.archive import (
    TIME,
    Entry,
    WrongContent,
    check_archive,
    check_content,
    header,
    unpack,
)
from broker.content.folder import verify_folder
from schemas import Manifest
from schemas.packages.manifest import PackageLink
from tests.support.packages import listed, manifest_of, package, zstd

_names = st.text(
    st.characters(codec="utf-8", exclude_characters="/\\", exclude_categories=("C", "Z")),
    min_size=1,
    max_size=90,
).filter(lambda name: name not in {".", ".."} and len(name.encode()) <= 255 and name.isprintable())
_paths = st.lists(_names, min_size=1, max_size=4).map("/".join)


def _unpacked(manifest: Manifest, archive: bytes, folder: Path) -> Path:
    folder.mkdir(mode=0o700)
    unpack(manifest, io.BytesIO(archive), folder)
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.dictionaries(_paths, st.binary(max_size=2000), max_size=6))
def test_what_is_packed_comes_out(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]
) -> None:
    try:
        manifest, archive = package(files)
    except ValueError:  # two paths collide
        return
    folder = _unpacked(manifest, archive, tmp_path_factory.mktemp("package") / "files")
    assert {path: (folder / path).read_bytes() for path in files} == files
    verify_folder(manifest, folder)
    check_archive(manifest, io.BytesIO(archive))
    check_content(manifest, io.BytesIO(archive))
    with tarfile.open(fileobj=zstd.open(io.BytesIO(archive)), mode="r|") as tar:
        assert {info.name for info in tar} == files.keys()


def test_the_same_files_give_the_same_bytes() -> None:
    files = {"b": b"2", "a/b": b"1" * 5000}
    first, again = package(files)[1], package(dict(reversed(files.items())))[1]
    assert first == again


def test_headers_are_the_same_in_every_version_of_python() -> None:
    entries: tuple[Entry, ...] = (
        listed("bin/setup", b"x", "0755"),
        listed("n" * 200 + "/ü", b""),
        PackageLink(path="link", target="t" * 150),
        "empty",
    )
    assert hashlib.sha256(b"".join(map(header, entries))).hexdigest() == (
        "558942c7b061e3b223289c0ed5e403124629d872189c366a79b9ef3d45132d60"
    )


@given(_paths, st.sampled_from(["0644", "0755"]), st.integers(0, 64 * 1024**3))
def test_headers_are_those_of_tarfile(path: str, mode: str, size: int) -> None:
    info = tarfile.TarInfo(path)
    info.mtime, info.mode, info.size = TIME, int(mode, 8), size
    entry = listed(path).model_copy(update={"mode": mode, "size": size})
    assert header(entry) == info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def test_modes_times_links_and_empty_folders(tmp_path: Path) -> None:
    manifest, archive = package({"a/f": b"1"}, {"a/l": "f", "m": "a"}, ("e/mpty",))
    old = os.umask(0o077)
    try:
        folder = _unpacked(manifest, archive, tmp_path / "files")
    finally:
        os.umask(old)
    assert (folder / "a/f").stat().st_mode & 0o7777 == 0o644
    assert (folder / "a/f").stat().st_mtime == TIME
    assert (folder / "a").stat().st_mode & 0o7777 == 0o755
    assert (folder / "a/l").readlink() == Path("f")
    assert (folder / "m/l").read_bytes() == b"1"
    assert list((folder / "e/mpty").iterdir()) == []
    verify_folder(manifest, folder)


def _tar(*entries: tarfile.TarInfo, data: bytes = b"", end: bytes = bytes(1024)) -> bytes:
    parts = [entry.tobuf(tarfile.PAX_FORMAT) + data + bytes(-len(data) % 512) for entry in entries]
    return zstd.compress(b"".join(parts) + end)


def _info(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mtime, info.mode = kind, TIME, 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info


_HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent folder": (lambda: _tar(_info("../f")), "a file '../f'"),
    "absolute": (lambda: _tar(_info("/etc/cron.d/f")), "a file '/etc/cron.d/f'"),
    "link out": (
        lambda: _tar(_info("f", tarfile.SYMTYPE, linkname="/etc/passwd")),
        "a symbolic link 'f' to '/etc/passwd'",
    ),
    "hard link out": (
        lambda: _tar(_info("f", tarfile.LNKTYPE, linkname="/etc/shadow")),
        "a hard link 'f' to '/etc/shadow'",
    ),
    "device": (lambda: _tar(_info("f", tarfile.CHRTYPE)), "a device 'f'"),
    "pipe": (lambda: _tar(_info("f", tarfile.FIFOTYPE)), "a pipe 'f'"),
    "setuid": (lambda: _tar(_info("f", mode=0o4755)), "a file 'f', mode 4755"),
    "owner": (lambda: _tar(_info("f", uname="root")), "a file 'f'"),
    "other name": (lambda: _tar(_info("F")), "a file 'F'"),
    "not UTF-8": (lambda: _tar(_info("f\udcff")), "there"),
    "other size": (lambda: _tar(_info("f", size=1), data=b"x"), "1 bytes"),
    "twice": (lambda: _tar(_info("f"), _info("f")), "entries that the manifest does not list"),
    "more files": (
        lambda: _tar(_info("f"), *(_info(f"f{number}") for number in range(10_000))),
        "entries that the manifest does not list",
    ),
    "no files": (_tar, "its end"),
    "no end": (lambda: _tar(_info("f"), end=b""), "ends too early"),
    "more after the end": (lambda: _tar(_info("f"), end=bytes(1025)), "bytes after its end"),
    "bomb": (lambda: _tar(_info("f"), end=bytes(2**28)), "bytes after its end"),
    "empty": (lambda: b"", "ends too early"),
    "no zstd": (lambda: b"<html>not found</html>", "is not zstd"),
    "gzip": (lambda: b"\x1f\x8b" + bytes(100), "is not zstd"),
    "cut": (lambda: _tar(_info("f"))[:-5], "ends too early"),
    "large window": (
        lambda: zstd.compress(
            random.Random(1).randbytes(2**20) * 12,
            options={
                zstd.CompressionParameter.window_log: 27,
                zstd.CompressionParameter.content_size_flag: 0,
            },
        ),
        "",
    ),
}


@pytest.mark.parametrize("kind", _HOSTILE)
def test_a_hostile_archive_is_refused_and_nothing_is_written(tmp_path: Path, kind: str) -> None:
    make, reason = _HOSTILE[kind]
    archive = make()
    manifest = manifest_of(files=[listed("f")], archive={"sha256": "0" * 64, "size": len(archive)})
    checks: dict[str, Callable[[Path], None]] = {
        "unpacked": lambda folder: unpack(manifest, io.BytesIO(archive), folder),
        "checked": lambda _: check_content(manifest, io.BytesIO(archive)),
    }
    for name, check in checks.items():
        folder = tmp_path / name
        folder.mkdir()
        with pytest.raises(WrongContent) as refused:
            check(folder)
        assert reason in str(refused.value)
        assert "\n" not in str(refused.value)
        assert {path.name for path in folder.iterdir()} <= {"f"}
    assert {path.name for path in tmp_path.iterdir()} == checks.keys()


@settings(deadline=None)
@given(st.data())
def test_any_other_byte_is_noticed(data: st.DataObject) -> None:
    manifest, archive = package({"a": b"content" * 40, "b/c": b""}, {"l": "a"})
    tar = bytearray(zstd.decompress(archive))
    place = data.draw(st.integers(0, len(tar) - 1))
    tar[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(WrongContent):
        check_content(manifest, io.BytesIO(zstd.compress(bytes(tar))))


@settings(deadline=None)
@given(st.binary(max_size=5000))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    manifest = manifest_of(files=[listed("f", b"x")])
    for archive in (data, zstd.compress(data)):
        with pytest.raises(WrongContent):
            check_content(manifest, io.BytesIO(archive))


def test_a_wrong_sum_is_refused(tmp_path: Path) -> None:
    manifest, archive = package({"f": b"right"})
    wrong = zstd.compress(zstd.decompress(archive).replace(b"right", b"wrong"))
    with pytest.raises(WrongContent, match="f: its SHA-256 is not the manifest's"):
        _unpacked(manifest, wrong, tmp_path / "files")
    with pytest.raises(WrongContent, match="bytes, not"):
        check_archive(manifest, io.BytesIO(archive[:-1]))
    with pytest.raises(WrongContent, match="more than"):
        check_archive(manifest, io.BytesIO(archive + b"x"))
    with pytest.raises(WrongContent, match="archive: its SHA-256"):
        check_archive(manifest, io.BytesIO(archive[:-1] + b"x"))


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink()
    make(path)


_CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda folder: (folder / "a/f").write_bytes(b"2"), "a/f: its SHA-256"),
    "size": (lambda folder: (folder / "a/f").write_bytes(b"22"), "a/f: has 2 bytes, not 1"),
    "mode": (lambda folder: (folder / "a/f").chmod(0o4755), "a/f: has mode 4755, not 0644"),
    "removed": (lambda folder: (folder / "a/f").unlink(), "a/f: is missing"),
    "added": (lambda folder: (folder / "a/new").touch(), "'a/new': is not in the manifest"),
    "folder added": (lambda folder: (folder / "new").mkdir(), "'new': is not in the manifest"),
    "link elsewhere": (
        lambda folder: _replace(folder / "l", lambda path: path.symlink_to("/etc")),
        "l: is not the manifest's link to a/f",
    ),
    "link for file": (
        lambda folder: _replace(folder / "a/f", lambda path: path.symlink_to("/etc/passwd")),
        "a/f: is not a regular file",
    ),
    "pipe for file": (
        lambda folder: _replace(folder / "a/f", os.mkfifo),
        "a/f: is not a regular file",
    ),
    "link for folder": (
        lambda folder: _replace(folder / "e", lambda path: path.symlink_to("a")),
        "e: is not a folder",
    ),
    "writable folder": (lambda folder: (folder / "a").chmod(0o777), "a: others than its owner"),
}


@pytest.mark.parametrize("kind", _CHANGES)
def test_a_change_on_the_disk_is_found(tmp_path: Path, kind: str) -> None:
    change, reason = _CHANGES[kind]
    manifest, archive = package({"a/f": b"1"}, {"l": "a/f"}, ("e",))
    folder = _unpacked(manifest, archive, tmp_path / "files")
    verify_folder(manifest, folder)
    change(folder)
    with pytest.raises(WrongContent) as found:
        verify_folder(manifest, folder)
    assert str(found.value).startswith(reason)
