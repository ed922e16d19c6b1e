"""TLS to the broker: always verified; what goes wrong is told by the setting that mends it."""

import ssl
from pathlib import Path

from yarl import URL

_ELSEWHERE = {
    "cafile": "PCM_TLS_CA",
    "capath": "PCM_TLS_CA",
    "cadata": "PCM_TLS_CA",
    "certfile": "PCM_TLS_CERT",
    "keyfile": "PCM_TLS_KEY",
}
_EXPIRED, _NOT_YET, _HOST_NAME, _ADDRESS = 10, 9, 62, 64
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_NO_TLS = (
    "no TLS is spoken there: write in PCM_AMQP_URL the broker's port for amqps, which is 5671 by"
    " default, or amqp:// where nobody can listen"
)
_NOT_OURS = (
    "it does not take our certificate: that of PCM_TLS_CERT has to be for clients, and by an"
    " authority that the broker trusts"
)
_REASONS = (  # in OpenSSL's words, the first that is in it
    ("EXPIRED", "it says that our certificate has expired: renew the one in PCM_TLS_CERT"),
    ("CERTIFICATE_REQUIRED", "it wants a certificate of us: name its file in PCM_TLS_CERT"),
    ("HANDSHAKE_FAILURE", "it broke off: does it want a certificate of us (PCM_TLS_CERT)?"),
    *((word, _NOT_OURS) for word in ("UNKNOWN_CA", "CERTIFICATE")),
    *((word, _NO_TLS) for word in ("WRONG_VERSION", "RECORD_LAYER", "UNEXPECTED_EOF")),
    ("VERSION", "it speaks no TLS that is safe: it has to offer TLS 1.2 or newer"),
)
_MECHANISMS = ("plain", "external")


def check_url(url: URL, *, has_certificate: bool) -> None:
    """Refuse what a URL says of TLS and may not, or cannot be done; by ValueError."""
    if "no_verify_ssl" in url.query:
        raise ValueError(
            "no_verify_ssl: the broker's certificate is always verified; leave it out, and name"
            " its authority's file in PCM_TLS_CA"
        )
    for option, setting in _ELSEWHERE.items():
        if option in url.query:
            raise ValueError(f"{option}: is set by {setting}; leave it out here")
    auth = url.query.get("auth", "").lower()
    if auth and auth not in _MECHANISMS:
        raise ValueError("auth: must be plain or external")
    if auth == "external" and not (url.scheme == "amqps" and has_certificate):
        raise ValueError("auth=external: needs amqps:// and the certificate of PCM_TLS_CERT")
    if is_external(url, has_certificate=has_certificate) and not url.user:
        raise ValueError(
            "without a password the login is by the certificate of PCM_TLS_CERT: write as whom, as"
            " in amqps://NAME@HOST/, where NAME is what the broker takes from the certificate"
        )


def is_external(url: URL, *, has_certificate: bool) -> bool:
    """Whether the login is by our certificate: said so, or there is no password."""
    auth = url.query.get("auth", "").lower()
    return auth == "external" or (
        not auth and url.scheme == "amqps" and has_certificate and not url.password
    )


def context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return how the broker is verified, and we prove who we are.

    Args:
        ca: the file of the authorities that are trusted; default: the system's.
        cert: our certificate.
        key: its key; default: in the certificate's file.

    Raises:
        ValueError: a file cannot be used; the text begins with the field.
    """
    if key is not None and cert is None:
        raise ValueError("tls_key: is the key of PCM_TLS_CERT, which is not set")
    for field, path in (("tls_ca", ca), ("tls_cert", cert), ("tls_key", key)):
        if path is not None:
            try:
                with path.open("rb"):
                    pass
            except OSError as error:
                raise ValueError(f"{field}: {path}: {error.strerror}") from None
    try:
        made = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(
            f"tls_ca: {ca}: holds no certificate; it must have those of authorities, in PEM"
        ) from None
    if cert is not None:
        _prove(made, cert, key)
    return made


def _prove(made: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    where, setting = (key, "tls_key") if key else (cert, "tls_cert")

    def no_password() -> str:
        raise ValueError(
            f"{setting}: {where}: the key has a passphrase; nobody is there to type it: write it"
            " without one, readable by its user alone"
        )

    try:
        made.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            text = f"{setting}: {where}: the key is not that of the certificate in {cert}"
        elif _has(cert, b"CERTIFICATE-----"):
            text = f"{setting}: {where}: holds no key that can be read; it must be in PEM"
            if key is None:
                text += ", in this file or in that of PCM_TLS_KEY"
        else:
            text = f"tls_cert: {cert}: holds no certificate; it must be in PEM"
        raise ValueError(text) from None


def _has(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


def trouble(error: BaseException, url: URL, *, has_certificate: bool) -> str:
    """Return what is wrong where an error may be TLS's, and what would be right; else nothing."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, ssl.SSLError):
        found = found.__cause__
    if isinstance(found, ssl.SSLCertVerificationError):
        return _unverified(found, url)
    if isinstance(found, ssl.SSLError):
        return _broken(found)
    if not _was_closed(error):
        return ""
    # With TLS 1.3 it hears of our certificate when we think that all is well; why it closes, is
    # lost where the connection is reset.
    if url.scheme != "amqps":
        why = (
            "does it speak TLS there? Then write amqps:// in PCM_AMQP_URL, or else the port for"
            " amqp, which is 5672 by default"
        )
    elif has_certificate:
        why = (
            "does it take that of PCM_TLS_CERT? It has to be for clients, by an authority that the"
            " broker trusts, and not to have expired"
        )
    else:
        why = "does it want a certificate of us? Name its file in PCM_TLS_CERT"
    return f"it closed the connection before a word of AMQP: {why}"


def _unverified(error: ssl.SSLCertVerificationError, url: URL) -> str:
    if error.verify_code in (_HOST_NAME, _ADDRESS):
        return f"its certificate is not for {url.host}: write in PCM_AMQP_URL a name that it is for"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return (
            "its certificate is by no authority that is trusted here: name the file of its"
            " authority in PCM_TLS_CA"
        )
    if error.verify_code == _EXPIRED:
        return "its certificate has expired: it has to be renewed there, unless the clock is wrong"
    if error.verify_code == _NOT_YET:
        return "its certificate is not valid yet: is the clock of this machine right?"
    return f"its certificate is not valid: {error.verify_message}"


def _broken(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    for word, text in _REASONS:
        if word in reason:
            return text
    return f"TLS: {reason.replace('_', ' ').lower()}"


def _was_closed(error: BaseException) -> bool:
    """Whether what came of a connection that was made is no AMQP: nothing, or an alert of TLS."""
    from asyncio import IncompleteReadError  # settings need this file, and not these

    from aio_pika.exceptions import InvalidFrameError

    closed = IncompleteReadError | ConnectionResetError | BrokenPipeError
    return isinstance(error, closed | InvalidFrameError) or isinstance(error.__cause__, closed)
