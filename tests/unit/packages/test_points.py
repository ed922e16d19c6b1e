"""Distribution points on a real web server, and on a server of S3's protocol."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import pytest

from broker.packages.building.package_file import build_package, read_package
from broker.packages.channels import promote_package, read_channel
from broker.packages.points.point import (
    CannotList,
    NotThere,
    Point,
    PointError,
    open_point,
    read_file,
)
from broker.packages.publishing import (
    NotPublished,
    collect_garbage,
    publish_package,
    published_versions,
    read_published,
    remove_package,
    verify_point,
)
from broker.packages.resolve import resolve_package
from tests.support.nginx import needs_nginx, nginx
from tests.support.packages import source_folder
from tests.support.waiting import until_true


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def _build(tmp_path: Path, version: str, name: str = "demo") -> Path:
    folder = source_folder(tmp_path / name, version=version)
    (folder / "data" / "random").write_bytes(os.urandom(3_000_000))
    return build_package(folder, tmp_path).path


def _exercise(point: Point, tmp_path: Path, *, can_list: bool) -> None:
    """Publish, find, verify and remove versions on a point."""
    assert published_versions(point) == {}
    sent: list[int] = []
    for version in ("1.0", "1.1", "2.0~rc1+x"):
        package = read_package(_build(tmp_path, version))
        assert publish_package(package, point, progress=sent.append)
        assert not publish_package(package, point)
    assert sum(sent) > 9_000_000
    with pytest.raises(NotPublished, match="has other content"):
        publish_package(read_package(_build(tmp_path, "1.0")), point)
    assert published_versions(point) == {"demo": ["2.0~rc1+x", "1.1", "1.0"]}
    found = resolve_package("demo@1.1", "install", [point])
    assert found.reference.version == "1.1"
    promoted = promote_package(point, read_published([point], "demo", "1.0"), "production")
    assert promoted.new.serial == 1
    channel = read_channel([point], "production").find("demo")
    assert channel is not None
    assert channel.version == "1.0"
    assert [one.problem for one in verify_point(point)] == ["", "", ""]
    remove_package(point, "demo", "1.1")
    assert published_versions(point) == {"demo": ["2.0~rc1+x", "1.0"]}
    with pytest.raises(NotPublished, match="does not have it"):
        read_published([point], "demo", "1.1")
    with pytest.raises(NotThere):
        read_file(point, "packages/demo/1.1.manifest", 100)
    with pytest.raises(PointError, match="over the limit"):
        read_file(point, "packages/demo/1.0.manifest", 100)
    if can_list:
        assert len(collect_garbage(point, 0)) == 1
        assert collect_garbage(point, 0) == []
    else:
        with pytest.raises(CannotList):
            collect_garbage(point, 0)


def test_a_folder(tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    _exercise(open_point(str(tmp_path / "point")), tmp_path, can_list=True)


@pytest.mark.full
@needs_nginx
def test_nginx(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    with nginx(tmp_path / "nginx", root) as address:
        _exercise(open_point(f"{address}/a point"), tmp_path, can_list=False)
        served = open_point(str(root / "a point"))
        assert published_versions(served) == {"demo": ["2.0~rc1+x", "1.0"]}
        assert [one.problem for one in verify_point(served)] == ["", ""]


@pytest.mark.full
@needs_nginx
def test_a_login(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "users").write_text("ada:{PLAIN}se/cret\n")
    more = f"auth_basic x; auth_basic_user_file {tmp_path}/users;"
    with nginx(tmp_path / "nginx", root, more) as address:
        host = address.removeprefix("http://")
        package = read_package(_build(tmp_path, "1.0"))
        for login in ("", "ada:wrong@"):
            with pytest.raises(PointError, match="not allowed") as refused:
                publish_package(package, open_point(f"http://{login}{host}"))
            assert "wrong" not in str(refused.value)
        point = open_point(f"http://ada:se%2Fcret@{host}")
        assert publish_package(package, point)
        assert "cret" not in point.url


@pytest.mark.full
def test_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _moto() as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        import boto3

        boto3.client("s3").create_bucket(Bucket="packages")
        _exercise(open_point("s3://packages/here/"), tmp_path, can_list=True)
        with pytest.raises(PointError, match="s3://nothing: "):
            publish_package(read_package(_build(tmp_path, "1.0")), open_point("s3://nothing"))


@contextmanager
def _moto() -> Iterator[str]:
    """A server of S3's protocol."""
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    words = [sys.executable, "-m", "moto.server", "-p", str(port)]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    try:
        until_true(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


class _Server(ThreadingHTTPServer):
    """Waits for its threads when it is closed, and does not print that a client has left."""

    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing."""


class _Hostile(BaseHTTPRequestHandler):
    """A server that answers wrongly, by the first word of the path."""

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        if kind.startswith("redirect"):
            targets = {"file": "file:///etc/passwd", "loop": self.path, "other": "http://other/"}
            self.send_response(302)
            self.send_header("Location", targets[kind.partition("-")[2]])
            self.end_headers()
            return
        self.send_response(500 if kind == "error" else 200)
        body = b"<html>not what you want</html>"
        if kind == "cut":
            self.send_header("Content-Length", str(len(body) + 100))
        elif kind == "index":
            body = b'{"packages": {"../../etc": ["1"], "demo": ["latest", "1.0"], "x": 5}}'
        elif kind == "endless":
            body = b"x" * 20_000_000
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hostile() -> Iterator[str]:
    """The address of a hostile server."""
    with _Server(("127.0.0.1", 0), _Hostile) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("redirect-file", "redirects to 'file:///etc/passwd'; name that address instead"),
        ("redirect-loop", "redirects to"),
        ("redirect-other", "redirects to 'http://other/'"),
        ("html", "is not an index of packages"),
        ("cut", "ends 100 bytes too early"),
        ("error", "GET: 500"),
        ("index", "is not an index of packages"),
        ("endless", "over the limit"),
    ],
)
def test_a_hostile_server(hostile: str, kind: str, reason: str) -> None:
    point = open_point(f"{hostile}/{kind}")
    with pytest.raises(PointError) as wrong:
        published_versions(point)
    assert reason in str(wrong.value)
    assert "\n" not in str(wrong.value)
    with pytest.raises(NotPublished):
        read_published([point], "demo", "1.0")


def test_a_server_that_is_not_there() -> None:
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with pytest.raises(PointError, match="Connection refused"):
        published_versions(open_point(f"http://127.0.0.1:{port}"))


def test_a_point_that_is_written_while_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "point").mkdir()
    point = open_point(str(tmp_path / "point"))

    class Broken(BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:  # noqa: ARG002 - as its base
            raise OSError(5, "Input/output error")

    with pytest.raises(PointError, match="Input/output error"):
        point.write("packages/demo/1.0.manifest", Broken(), 10)
    with pytest.raises(PointError, match="3 bytes were read, not 10"):
        point.write("packages/demo/1.0.manifest", BytesIO(b"abc"), 10)
    assert [path for path in (tmp_path / "point").rglob("*") if path.is_file()] == []
    assert json.dumps(published_versions(point)) == "{}"
