"""TLS to a real broker: verified, by password or certificate; each way it fails is one line."""

import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from yarl import URL

from broker import Dispatcher, DispatcherSettings
from schemas import State
from tests.support.authority import Authority, Files
from tests.support.rabbitmq import Node, free_port, own_nodes
from tests.support.workstation import Workstation, final, follow

LOGIN = "service@ws-tls"
_LISTENER = """
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {ca}
ssl_options.certfile = {files.cert}
ssl_options.keyfile = {files.key}
ssl_options.verify = verify_peer
ssl_options.fail_if_no_peer_cert = false
auth_mechanisms.1 = PLAIN
auth_mechanisms.2 = EXTERNAL
ssl_cert_login_from = common_name
"""


class Place:
    """A broker with TLS, and the certificates of its clients."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority(folder, "ours")
        self.other = Authority(folder, "another")
        self.port = free_port()
        server = self.authority.issue("localhost", name="broker")
        self.node = Node(
            "rabbitmq_auth_mechanism_ssl",
            configuration=_LISTENER.format(port=self.port, ca=self.authority.file, files=server),
        )
        self.client = self.authority.issue("client", name=LOGIN)
        self.strange = self.other.issue("client", name="strange")
        self.expired = self.authority.issue("client", name="expired", expired=True)
        self.nobody = self.authority.issue("client", name="nobody")

    @property
    def url(self) -> str:
        """The address with guest's password."""
        return f"amqps://guest:guest@localhost:{self.port}/"

    @property
    def nameless(self) -> str:
        """The address without a password."""
        return str(URL(f"amqps://localhost:{self.port}/").with_user(LOGIN))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with own_nodes():
        made = Place(tmp_path_factory.mktemp("tls"))
        with made.node:
            made.node.ctl("add_user", LOGIN, "never used")
            made.node.ctl("clear_password", LOGIN)
            made.node.ctl("set_permissions", LOGIN, ".*", ".*", ".*")
            yield made


def look(place: Place, url: str, **files: Path | None) -> tuple[int, str]:
    """Run a program that asks the broker; return its exit status, and the one line it wrote."""
    given = {name: str(path) for name, path in files.items() if path}
    done = Workstation("ws", url, place.folder).run("pcm", "dead", "list", **given)
    if done.returncode == 0:
        return 0, done.stdout
    (line,) = done.stderr.splitlines()
    assert "guest:guest" not in line
    return done.returncode, line


@contextmanager
def presenting(files: Files) -> Iterator[int]:
    """Serve on a port of loopback with a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                    with peer, context.wrap_socket(peer, server_side=True):
                        pass
                except ssl.SSLError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
    thread.join()


@pytest.mark.full
def test_a_password_goes_to_a_verified_broker_only(place: Place) -> None:
    assert look(place, place.url, tls_ca=place.authority.file) == (0, "no dead letters\n")
    for ca in (None, place.other.file):
        status, line = look(place, place.url, tls_ca=ca)
        assert status == 3
        assert "not signed by a trusted authority" in line
        assert "PCM_TLS_CA" in line
    # By a name that the certificate does not have.
    status, line = look(
        place, place.url.replace("localhost", "127.0.0.1"), tls_ca=place.authority.file
    )
    assert status == 3
    assert "its certificate is not for 127.0.0.1: write a name that it has" in line
    with presenting(place.authority.issue("localhost", name="old", expired=True)) as port:
        url = f"amqps://guest:guest@localhost:{port}/"
        status, line = look(place, url, tls_ca=place.authority.file)
    assert status == 3
    assert "its certificate has expired" in line


@pytest.mark.full
def test_a_certificate_is_a_login(place: Place) -> None:
    ours = {"tls_ca": place.authority.file, "tls_cert": place.client.cert}
    assert look(place, place.nameless, **ours, tls_key=place.client.key)[0] == 0
    both = place.folder / "both.pem"
    both.write_bytes(place.client.cert.read_bytes() + place.client.key.read_bytes())
    assert look(place, place.nameless, **ours | {"tls_cert": both})[0] == 0
    url = str(URL(place.url).with_query(auth="external").with_user(LOGIN))
    assert look(place, url, **ours, tls_key=place.client.key)[0] == 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("who", "says", "status"),
    [
        ("strange", "by an authority that the broker trusts", 3),
        ("expired", "expired", 3),
        ("nobody", "it has no user of the name in PCM_TLS_CERT", 1),
    ],
)
def test_a_certificate_that_is_not_taken_is_reported(
    place: Place, who: str, says: str, status: int
) -> None:
    cert, key = getattr(place, who)
    given, line = look(
        place, place.nameless, tls_ca=place.authority.file, tls_cert=cert, tls_key=key
    )
    assert (given, says in line, "PCM_TLS_CERT" in line) == (status, True, True), line


@pytest.mark.full
def test_a_broker_that_takes_no_certificates_is_reported(place: Place) -> None:
    set_to = "application:set_env(rabbit, auth_mechanisms, [{}])."
    place.node.ctl("eval", set_to.format("'PLAIN'"))
    try:
        status, line = look(
            place,
            place.nameless,
            tls_ca=place.authority.file,
            tls_cert=place.client.cert,
            tls_key=place.client.key,
        )
    finally:
        place.node.ctl("eval", set_to.format("'PLAIN','EXTERNAL'"))
    assert status == 1
    assert "supports no login by certificate: enable the plugin rabbitmq_auth_mechanism_ssl" in line


@pytest.mark.full
def test_tls_where_there_is_none_and_none_where_there_is(place: Place) -> None:
    status, line = look(place, place.url.replace(str(place.port), str(place.node.port)))
    assert status == 3
    assert "the port does not use TLS: write the broker's amqps port in PCM_AMQP_URL" in line
    status, line = look(place, place.url.replace("amqps", "amqp"))
    assert status == 3
    assert "does the port use TLS? Then write amqps:// in PCM_AMQP_URL" in line


@pytest.mark.full
def test_files_that_cannot_be_used_are_reported_by_their_setting(
    place: Place, tmp_path: Path
) -> None:
    cert, key = place.client
    missing, text = tmp_path / "missing.pem", tmp_path / "text.pem"
    text.write_text("no certificate")
    ca = place.authority.file
    for files, says in (
        ({"tls_ca": missing}, f"PCM_TLS_CA: {missing}: No such file"),
        ({"tls_ca": text}, f"PCM_TLS_CA: {text}: holds no certificate"),
        ({"tls_ca": tmp_path}, f"PCM_TLS_CA: {tmp_path}: Is a directory"),
        ({"tls_cert": missing}, f"PCM_TLS_CERT: {missing}: No such file"),
        ({"tls_cert": text, "tls_key": key}, f"PCM_TLS_CERT: {text}: holds no certificate"),
        ({"tls_cert": cert}, f"PCM_TLS_CERT: {cert}: holds no readable key"),
        ({"tls_cert": cert, "tls_key": text}, f"PCM_TLS_KEY: {text}: holds no readable key"),
        ({"tls_cert": cert, "tls_key": place.nobody.key}, "PCM_TLS_KEY: "),
        ({"tls_key": key}, "PCM_TLS_KEY: is the key of PCM_TLS_CERT, which is not set"),
    ):
        status, line = look(place, place.url, **{"tls_ca": ca} | files)
        assert (status, says in line) == (2, True), line
    assert (
        "the key does not match the certificate"
        in look(place, place.url, tls_cert=cert, tls_key=place.nobody.key)[1]
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("amqps://a:b@h/?no_verify_ssl=1", "no_verify_ssl: the broker's certificate is always"),
        ("amqps://a:b@h/?cafile=/x", "cafile: is set by PCM_TLS_CA"),
        ("amqps://a:b@h/?auth=external", "auth=external: needs amqps:// and the certificate"),
        ("amqps://a:b@h/?auth=amqplain", "auth: must be plain or external"),
        ("amqp://a:b@h/,amqps://a:b@h/", "has amqp:// and amqps:// addresses"),
    ],
)
def test_what_a_url_may_not_say(place: Place, url: str, says: str) -> None:
    status, line = look(place, url)
    assert status == 2
    assert line.startswith(f"pcm: PCM_AMQP_URL: {says}")


@pytest.mark.full
def test_tls_settings_without_tls_are_wrong(place: Place) -> None:
    status, line = look(place, place.node.url, tls_ca=place.authority.file)
    assert (status, line) == (2, "pcm: PCM_TLS_CA: is for TLS, and PCM_AMQP_URL has no amqps://")
    status, line = look(
        place,
        place.nameless.replace("service%40ws-tls@", ""),
        tls_ca=place.authority.file,
        tls_cert=place.client.cert,
        tls_key=place.client.key,
    )
    assert (status, "write the user" in line) == (2, True)


@pytest.mark.full
async def test_an_agent_waits_for_what_heals_and_works_by_its_certificate(
    place: Place, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    shutil.copy(place.other.file, ca)
    ws = Workstation("ws-tls", place.nameless, tmp_path)
    agent = ws.start(
        "service",
        connected=False,
        tls_ca=str(ca),
        tls_cert=str(place.client.cert),
        tls_key=str(place.client.key),
    )
    try:
        agent.wait_for("broker.lost")
        assert "PCM_TLS_CA" in agent.events("broker.lost")[0]["reason"]
        shutil.copy(place.authority.file, ca)
        agent.wait_for("broker.connected")
        settings = DispatcherSettings(amqp_url=(place.url,), tls_ca=place.authority.file)
        async with Dispatcher.connect(settings) as dispatcher:
            job = await dispatcher.dispatch(ws.job("true", background=True))
            # Its reports bear the login that the broker took from the certificate.
            assert final(await follow(dispatcher, job)).state is State.SUCCEEDED
    finally:
        ws.stop()
