"""A real nginx on a free port, that serves a folder and accepts PUT and DELETE."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import until_true

NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
needs_nginx = pytest.mark.skipif(not Path(NGINX).exists(), reason="nginx is not installed")

_CONFIGURATION = """
daemon off;
{user}
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_max_body_size 0;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        location / {{
            dav_methods PUT DELETE;
            create_full_put_path on;
            {more}
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, root: Path, more: str = "") -> Iterator[str]:
    """Serve a folder until the block ends; yield the address.

    Args:
        folder: a new folder for nginx's own files.
        root: what it serves.
        more: further directives of its location.
    """
    folder.mkdir()
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    configuration = folder / "nginx.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            folder=folder,
            root=root,
            port=port,
            more=more,
            # Its workers would be another user, who may not enter a test's folder.
            user="user root;" if os.geteuid() == 0 else "",
        )
    )
    process = subprocess.Popen([NGINX, "-c", str(configuration), "-p", str(folder)])
    try:
        until_true(lambda: _answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True
