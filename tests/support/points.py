"""Distribution points for tests: packages in a folder, and servers that serve it well or badly."""

import asyncio
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from broker.content.archive import ArchiveWriter
from broker.signing.signer import Signer
from schemas import Command, Job, Manifest, SignedText
from schemas.orders.package import PackageReference, RequiredPackage
from schemas.packages.manifest import manifest_digest
from schemas.packages.paths import archive_path, manifest_path
from tests.support.workstation import Workstation


@dataclass(frozen=True)
class Published:
    """A package on a point."""

    manifest: Manifest
    digest: str
    archive: Path

    @property
    def required(self) -> RequiredPackage:
        """What a job names."""
        manifest = self.manifest
        return RequiredPackage(name=manifest.name, version=manifest.version, manifest=self.digest)

    def job(self, ws: Workstation, command: str = "install", **fields: Any) -> Job:
        """Return a job for a command of the package, as `pcm send --package` makes it."""
        reference = {
            name: fields.pop(name) for name in ("channel", "channel_serial") & fields.keys()
        }
        requires = tuple(one.required for one in fields.pop("requires", ()))
        package = PackageReference(
            **self.required.model_dump(), command=command, requires=requires, **reference
        )
        changes = {name: fields.pop(name) for name in list(fields) if name in Command.model_fields}
        ordered = self.manifest.command(command)
        ordered = Command.model_validate({**ordered.model_dump(), **changes})
        return Job(command=ordered, package=package, targets=(ws.target,), **fields)


class PointFolder:
    """The folder of a point."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def publish(
        self,
        files: dict[str, bytes],
        *,
        signer: Signer | None = None,
        **fields: Any,
    ) -> Published:
        """Build a package of files (those that begin with #! are executable), and publish it."""
        file = BytesIO()
        with ArchiveWriter(file) as writer:
            entries = [
                writer.add_file(
                    path, "0755" if data.startswith(b"#!") else "0644", BytesIO(data), len(data)
                )
                for path, data in sorted(files.items(), key=lambda item: item[0].encode())
            ]
            archive = writer.finish()
        given = {
            "name": "demo",
            "version": "1.0",
            "commands": {"install": {"argv": ["true"], "background": True}},
        }
        manifest = Manifest.model_validate(
            {**given, **fields, "archive": archive.model_dump(), "files": entries}
        )
        text = manifest.body()
        signatures = (signer.sign(manifest, text),) if signer else ()
        signed = SignedText(text=text.decode(), signatures=signatures)
        path = self.folder / archive_path(archive.sha256)
        self.write(manifest_path(manifest.name, manifest.version), signed.body())
        self.write(archive_path(archive.sha256), file.getvalue())
        return Published(manifest, manifest_digest(text), path)

    def write(self, path: str, data: bytes) -> None:
        """Write a file, with the folders around it."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def noise(size: int, seed: str = "") -> bytes:
    """Return bytes that do not compress, the same each time."""
    return hashlib.shake_256(seed.encode()).digest(size)


@dataclass
class Asked:
    """A request to a server: its path, and where its range begins."""

    path: str
    headers: dict[str, str]

    @property
    def offset(self) -> int:
        """Where the wanted range begins."""
        given = self.headers.get("range", "bytes=0-")
        return int(given.removeprefix("bytes=").partition("-")[0])

    @property
    def is_archive(self) -> bool:
        """Whether an archive is asked for."""
        return self.path.startswith("/sha256/")


Answer = Callable[[Asked, asyncio.StreamWriter], Any]


@dataclass
class BadServer:
    """A server of a point's folder, of which tests change the answers."""

    folder: Path
    answer: Answer | None = None
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    def archives(self) -> list[Asked]:
        """Return the requests for archives."""
        return [asked for asked in self.asked if asked.is_archive]

    def reply(
        self,
        asked: Asked,
        writer: asyncio.StreamWriter,
        *,
        status: str = "",
        headers: dict[str, str] | None = None,
        cut: int | None = None,
        length: int | None = None,
    ) -> None:
        """Answer as a web server does, with some differences."""
        path = self.folder / asked.path[1:].partition("?")[0]
        if not path.is_file():
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        data = path.read_bytes()
        given = {"ETag": f'"{hashlib.sha256(data).hexdigest()[:8]}"'} | (headers or {})
        if_range = asked.headers.get("if-range", given["ETag"])
        offset = asked.offset if if_range == given["ETag"] else 0
        if offset:
            status = status or "206 Partial Content"
            given["Content-Range"] = f"bytes {offset}-{len(data) - 1}/{len(data)}"
        body = data[offset:]
        given.setdefault("Content-Length", str(len(body) if length is None else length))
        lines = [f"HTTP/1.1 {status or '200 OK'}", *(f"{k}: {v}" for k, v in given.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body[:cut])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            asked = Asked(head[0].split()[1], {k.lower(): v for k, v in headers.items()})
            self.asked.append(asked)
            if self.answer is None:
                self.reply(asked, writer)
            else:
                result = self.answer(asked, writer)
                if asyncio.iscoroutine(result):
                    await result
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving(
    folder: Path, answer: Answer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[BadServer]:
    """Serve a point's folder on a free port."""
    server = BadServer(folder, answer)
    listener = await asyncio.start_server(server._serve, "127.0.0.1", 0, ssl=tls)  # noqa: SLF001 - its own
    scheme = "https" if tls else "http"
    server.url = f"{scheme}://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listener.close()
