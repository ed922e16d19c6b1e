"""From a folder to a distribution point: build, inspect, publish, promote, remove."""

import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from broker.content.archive import ArchiveWriter, WrongContent
from broker.packages.building.package_file import build_package, read_package
from broker.packages.channels import WrongChannel, promote_package, read_channel
from broker.packages.points.point import PointError, open_point
from broker.packages.publishing import read_published
from broker.packages.resolve import resolve_package
from broker.signing.resign_policy import keyring_of
from schemas import Job, Manifest, everyone
from schemas.errors import PcmError
from tests.support.keys import Keys
from tests.support.packages import source_folder
from tests.unit.packages.conftest import Pcm


@pytest.fixture
def publish(tmp_path: Path, point: Path, pcm: Pcm) -> Callable[..., None]:
    """Builds and publishes a version of a package."""

    def make(name: str, version: str = "1.0", **options: Any) -> None:
        folder = source_folder(tmp_path / name, version=version, **options)
        assert pcm("package", "build", folder)[0] == 0
        assert pcm("package", "publish", f"{name}_{version}.pcmpkg") == (
            0,
            f"{name}@{version}: published: {point}\n",
            "",
        )

    return make


def test_the_same_folder_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy" / "demo"
    shutil.copytree(folder, other)
    (other / "setup.sh").touch()
    first = build_package(folder, tmp_path / "1").path.read_bytes()
    assert build_package(other, tmp_path / "2").path.read_bytes() == first


def test_a_built_package_reads_as_it_was_built(folder: Path, tmp_path: Path, pcm: Pcm) -> None:
    built = build_package(folder, tmp_path)
    read = read_package(built.path)
    assert (read.manifest, read.signed) == (built.manifest, built.signed)
    status, printed, _ = pcm("package", "inspect", built.path, "--files")
    assert status == 0
    assert f"manifest    {built.digest}\n" in printed
    assert hashlib.sha256(b"content").hexdigest() in printed
    fields = json.loads(pcm("package", "inspect", built.path, "--files", "--json")[1])
    assert [file["path"] for file in fields["files"]] == ["data/file", "setup.sh"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


_DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "HTML": lambda _: b"<html>404</html>",
    "cut": lambda data: data[: len(data) // 2],
    "archive changed": lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:],
    "manifest changed": lambda data: data.replace(b"for tests", b"for trials"),
    "sum changed": lambda data: data.replace(b'size\\":7,', b'size\\":8,'),
    "other tar": lambda _: _tar("other"),
}


def _tar(name: str) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(name))
    return file.getvalue()


@pytest.mark.parametrize("kind", _DAMAGE)
def test_a_damaged_file_is_refused(
    folder: Path, tmp_path: Path, point: Path, pcm: Pcm, kind: str
) -> None:
    path = build_package(folder, tmp_path).path
    damaged = _DAMAGE[kind](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    for action in ("inspect", "publish"):
        status, printed, errors = pcm("package", action, path)
        assert status in {1, 2}
        assert printed == ""
        assert errors.startswith("pcm: ")
        assert errors.count("\n") == 1
    assert list(point.iterdir()) == []


def test_a_version_never_changes(publish: Callable[..., None], tmp_path: Path, pcm: Pcm) -> None:
    publish("demo")
    assert "is there already" in pcm("package", "publish", "demo_1.0.pcmpkg")[1]
    (tmp_path / "demo" / "data" / "file").write_bytes(b"other")
    pcm("package", "build", tmp_path / "demo")
    status, _, errors = pcm("package", "publish", "demo_1.0.pcmpkg")
    assert status == 1
    assert "has other content as demo@1.0; give it another version" in errors


def test_channels_move_and_say_so(publish: Callable[..., None], pcm: Pcm) -> None:
    publish("demo", "1.0")
    publish("demo", "1.1")
    promote = ("package", "promote", "--channel", "production")
    assert pcm(*promote, "demo@1.0")[1] == "production: demo@1.0, list number 1\n"
    assert pcm(*promote, "demo@1.1")[1] == "production: demo@1.1 (before: 1.0), list number 2\n"
    assert pcm(*promote, "demo@1.1")[1] == "production: names demo@1.1 already\n"
    status, _, errors = pcm(*promote, "demo@1.0")
    assert (status, errors) == (
        2,
        "pcm: package promote: give --yes: there is no terminal to confirm on\n",
    )
    assert pcm(*promote, "demo@1.0", "--yes")[0] == 0
    assert "demo@1.0" in pcm("package", "show", "demo@production")[1]
    assert "demo@1.1" in pcm("package", "show", "demo")[1]
    status, _, errors = pcm("package", "remove", "demo@1.0")
    assert status == 1
    assert "the channel production names it; promote another version first" in errors


def test_an_older_list_is_refused(publish: Callable[..., None], point: Path, pcm: Pcm) -> None:
    publish("demo", "1.0")
    publish("demo", "1.1")
    listing = point / "channels" / "production.list"
    pcm("package", "promote", "demo@1.0", "--channel", "production")
    old = listing.read_bytes()
    pcm("package", "promote", "demo@1.1", "--channel", "production")
    listing.write_bytes(old)
    for words in (
        ("show", "demo@production"),
        ("promote", "demo@1.1", "--channel", "production"),
    ):
        status, _, errors = pcm("package", *words)
        assert status == 1
        assert "its list number 1 is older than number 2, which was seen" in errors


def test_garbage_is_what_no_manifest_names(
    publish: Callable[..., None], tmp_path: Path, point: Path, pcm: Pcm
) -> None:
    publish("demo", "1.0")
    (tmp_path / "demo" / "data" / "more").write_bytes(b"x" * 100)
    publish("demo", "1.1")
    assert pcm("package", "remove", "demo@1.0") == (0, "demo@1.0: removed\n", "")
    assert pcm("package", "gc")[1] == "nothing to remove\n"  # it is new
    assert "would be removed" in pcm("package", "gc", "--older-than", "0s", "--dry-run")[1]
    assert pcm("package", "gc", "--older-than", "0s")[1].count(": removed,") == 1
    assert pcm("package", "verify")[1].startswith("demo@1.1: right, ")
    assert len([path for path in (point / "sha256").rglob("*") if path.is_file()]) == 1
    assert json.loads((point / "index.json").read_text())["packages"] == {"demo": ["1.1"]}


def test_verify_names_what_is_damaged(publish: Callable[..., None], point: Path, pcm: Pcm) -> None:
    publish("demo", "1.0")
    publish("other", "1.0", tables="[detect]\nargv = ['true']\n")
    archive = next(path for path in (point / "sha256").rglob("*") if path.is_file())
    archive.write_bytes(archive.read_bytes()[:-1] + b"x")
    (point / "packages" / "other" / "1.0.manifest").write_text("<html>")
    status, printed, _ = pcm("package", "verify")
    assert status == 1
    assert "demo@1.0: archive: its SHA-256 is not the manifest's\n" in printed
    assert "other/1.0.manifest: is not a manifest" in printed


@pytest.mark.usefixtures("point")
def test_signed_packages(
    folder: Path, tmp_path: Path, pcm: Pcm, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(tmp_path)
    keys.trust("ada")
    keys.trust("bob", packages=("other-*",))
    eve = keys.make("eve")
    assert eve.name == "eve"
    monkeypatch.setenv("PCM_TRUSTED_KEYS", str(keys.folder))

    def publish(name: str, version: str) -> None:
        monkeypatch.setenv("PCM_SIGNING_KEY", str(keys.private[name]))
        source_folder(folder, version=version)
        pcm("package", "build", folder)
        assert pcm("package", "publish", f"demo_{version}.pcmpkg")[0] == 0

    publish("ada", "1.0")
    assert pcm("package", "show", "demo")[0] == 0
    assert "signed by   ada (trusted)" in pcm("package", "inspect", "demo_1.0.pcmpkg")[1]
    for name, version, reason in (
        ("bob", "1.1", "the key of bob may not order the package demo"),
        ("eve", "1.2", "is not trusted"),
    ):
        publish(name, version)
        status, _, errors = pcm("package", "show", f"demo@{version}")
        assert status == 1
        assert reason in errors
        status, _, errors = pcm("package", "promote", f"demo@{version}", "--channel", "production")
        assert status == 1
    monkeypatch.setenv("PCM_SIGNING_KEY", str(keys.private["eve"]))
    pcm("package", "promote", "demo@1.0", "--channel", "production")
    status, _, errors = pcm("package", "show", "demo@production")
    assert status == 1
    assert "production.list: the key" in errors


def _resolve(point: Path, text: str, command: str = "install") -> Any:
    return resolve_package(text, command, [open_point(str(point))])


def test_what_is_required_is_resolved_in_order(publish: Callable[..., None], point: Path) -> None:
    publish("base", "1.0")
    publish("base", "1.9")
    publish("base", "2.0")
    publish("library", "1.0", more='requires = ["base >= 1, < 2"]')
    publish("app", "1.0", more='requires = ["library", "base"]')
    found = _resolve(point, "app")
    assert [str(one) for one in found.reference.requires] == ["base@1.9", "library@1.0"]
    assert _resolve(point, "app", "uninstall").reference.requires == ()
    job = Job(command=found.command, package=found.reference, targets=(everyone,))
    assert Job.read(job.body()) == job
    assert job.title == "app@1.0 install"
    assert found.package.manifest.objection(job, found.reference) == ""
    other = job.model_copy(
        update={"command": job.command.model_copy(update={"argv": ("./setup.sh", "other")})}
    )
    assert "is not the package's install" in found.package.manifest.objection(
        other, found.reference
    )


@pytest.mark.parametrize(
    ("made", "wish", "reason"),
    [
        ({}, "app@2", "app@2: "),
        ({}, "ap", "no point has the package; did you mean app?"),
        ({}, "app@latest", "channel latest"),
        ({}, "app@1_0", "is not a version"),
        ({}, "a pp", "is not a name"),
        ({"app": 'requires = ["nothing"]'}, "app", "app@1.0 requires nothing"),
        (
            {"app": 'requires = ["b"]', "b": 'requires = ["app"]'},
            "app",
            "app requires b requires app",
        ),
        ({"app": 'requires = ["b<1"]', "b": ""}, "app", "b<1: no such version is published"),
        (
            {"app": 'requires = ["b", "c"]', "b": 'requires = ["c<2"]', "c": 'conflicts = ["b"]'},
            "app",
            "c@1.0 conflicts with b, and 1.0 is required",
        ),
    ],
)
def test_what_cannot_be_resolved(
    publish: Callable[..., None], point: Path, made: dict[str, str], wish: str, reason: str
) -> None:
    for name in made or {"app": ""}:
        publish(name, more=made.get(name, ""))
    with pytest.raises(PcmError) as wrong:
        _resolve(point, wish)
    assert reason in str(wrong.value)


def test_a_point_that_lies_is_refused(publish: Callable[..., None], point: Path) -> None:
    publish("demo", "1.0")
    publish("demo", "1.1")
    folder = point / "packages" / "demo"
    shutil.copy(folder / "1.0.manifest", folder / "1.1.manifest")
    with pytest.raises(Exception, match=r"1\.1\.manifest: is of demo@1\.0"):
        _resolve(point, "demo")
    assert _resolve(point, "demo@1.0").reference.version == "1.0"


def test_the_next_point_serves_what_the_first_has_not(
    publish: Callable[..., None], point: Path, tmp_path: Path
) -> None:
    publish("demo")
    empty = tmp_path / "empty"
    empty.mkdir()
    points = [open_point(str(empty)), open_point(str(point))]
    assert str(read_published(points, "demo", "1.0")) == "demo@1.0"
    assert resolve_package("demo", "install", points).package.point is points[1]


def test_a_channel_that_another_changes_at_the_same_time(
    publish: Callable[..., None], point: Path
) -> None:
    publish("demo")
    here = open_point(str(point))

    class Slow:
        """Another administrator's list arrives after ours."""

        def __getattr__(self, name: str) -> Any:
            return getattr(here, name)

        def write(self, path: str, source: io.BytesIO, size: int) -> None:
            here.write(path, source, size)
            other = b"{}"
            here.write(path, io.BytesIO(other), len(other))

    package = read_published([here], "demo", "1.0")
    with pytest.raises(WrongChannel, match="another administrator changed it"):
        promote_package(Slow(), package, "production")  # type: ignore[arg-type] # as a point
    with pytest.raises(WrongChannel):
        read_channel([here], "production", keyring_of(None))


@pytest.mark.parametrize(
    "address", ["nowhere", "ftp://host/x", "https://", "http://host:port/", "http://h/?q", "s4://b"]
)
def test_a_wrong_address_of_a_point(pcm: Pcm, address: str) -> None:
    with pytest.raises(PointError):
        open_point(address)
    status, _, errors = pcm("package", "list", "--point", address)
    assert status == 2
    assert errors.startswith("pcm: POINT: ")
    assert errors.count("\n") == 1


def test_a_missing_point_is_named(pcm: Pcm, tmp_path: Path) -> None:
    status, _, errors = pcm("package", "list")
    assert (status, errors) == (2, "pcm: POINT: give one, or set PCM_POINTS\n")
    folder = source_folder(tmp_path / "demo")
    pcm("package", "build", folder)
    status, _, errors = pcm("package", "publish", "demo_1.0.pcmpkg", tmp_path / "no")
    assert status == 1
    assert "is not a folder; make it first" in errors


def test_manifests_are_limited() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        Manifest.read(b" " * (64 * 1024 * 1024 + 1))


def test_a_file_that_changes_while_it_is_read() -> None:
    with ArchiveWriter(io.BytesIO()) as writer:
        for content in (b"short", b"much too long"):
            with pytest.raises(WrongContent, match="f: changed while it was read"):
                writer.add_file("f", "0644", io.BytesIO(content), 8)
