"""TLS to the broker: always verified; error messages name the setting to change."""

import ssl
from pathlib import Path

from yarl import URL

_SETTING_OF_OPTION = {
    "cafile": "PCM_TLS_CA",
    "capath": "PCM_TLS_CA",
    "cadata": "PCM_TLS_CA",
    "certfile": "PCM_TLS_CERT",
    "keyfile": "PCM_TLS_KEY",
}
_EXPIRED, _NOT_YET, _HOST_NAME, _ADDRESS = 10, 9, 62, 64
_UNKNOWN_AUTHORITY = (2, 18, 19, 20, 21)
_NO_TLS = (
    "the port does not use TLS: write the broker's amqps port in PCM_AMQP_URL, 5671 by default;"
    " or amqp:// if the network is trusted"
)
_CERTIFICATE_REFUSED = (
    "it refuses our certificate: PCM_TLS_CERT must be a client certificate, signed by an"
    " authority that the broker trusts"
)
_REASONS = (  # by a word of OpenSSL's error; the first match counts
    ("EXPIRED", "it says that our certificate has expired: renew the one in PCM_TLS_CERT"),
    ("CERTIFICATE_REQUIRED", "it requires a client certificate: name its file in PCM_TLS_CERT"),
    ("HANDSHAKE_FAILURE", "it ended the handshake: does it require PCM_TLS_CERT?"),
    *((word, _CERTIFICATE_REFUSED) for word in ("UNKNOWN_CA", "CERTIFICATE")),
    *((word, _NO_TLS) for word in ("WRONG_VERSION", "RECORD_LAYER", "UNEXPECTED_EOF")),
    ("VERSION", "it supports no safe TLS version: it must offer TLS 1.2 or newer"),
)
_MECHANISMS = ("plain", "external")


def check_url(url: URL, *, has_certificate: bool) -> None:
    """Check the TLS and login options of a URL.

    Raises:
        ValueError: an option is not allowed, or cannot work.
    """
    if "no_verify_ssl" in url.query:
        raise ValueError(
            "no_verify_ssl: the broker's certificate is always verified; remove the option, and"
            " name the authority's file in PCM_TLS_CA"
        )
    for option, setting in _SETTING_OF_OPTION.items():
        if option in url.query:
            raise ValueError(f"{option}: is set by {setting}; remove it here")
    auth = url.query.get("auth", "").lower()
    if auth and auth not in _MECHANISMS:
        raise ValueError("auth: must be plain or external")
    if auth == "external" and not (url.scheme == "amqps" and has_certificate):
        raise ValueError("auth=external: needs amqps:// and the certificate of PCM_TLS_CERT")
    if is_external(url, has_certificate=has_certificate) and not url.user:
        raise ValueError(
            "without a password the login is by the certificate of PCM_TLS_CERT: write the user,"
            " as in amqps://NAME@HOST/, where NAME is what the broker reads from the certificate"
        )


def is_external(url: URL, *, has_certificate: bool) -> bool:
    """Whether the login is by our certificate: by `auth=external`, or without a password."""
    auth = url.query.get("auth", "").lower()
    return auth == "external" or (
        not auth and url.scheme == "amqps" and has_certificate and not url.password
    )


def context(ca: Path | None, cert: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return the TLS context for connections to the broker.

    Args:
        ca: the file of trusted authorities; default: the system's.
        cert: our certificate.
        key: the private key; default: in the certificate's file.

    Raises:
        ValueError: a file cannot be used; the message starts with the field's name.
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
        context = ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise ValueError(
            f"tls_ca: {ca}: holds no certificate; it must hold those of authorities, in PEM"
        ) from None
    if cert is not None:
        _load_certificate(context, cert, key)
    return context


def _load_certificate(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    path, setting = (key, "tls_key") if key else (cert, "tls_cert")

    def no_password() -> str:
        raise ValueError(
            f"{setting}: {path}: the key has a passphrase, which is not supported: save it without"
            " one, with mode 0600"
        )

    try:
        context.load_cert_chain(cert, key, no_password)
    except ssl.SSLError as error:
        reason = error.reason or ""
        if "MISMATCH" in reason:
            text = f"{setting}: {path}: the key does not match the certificate in {cert}"
        elif _contains(cert, b"CERTIFICATE-----"):
            text = f"{setting}: {path}: holds no readable key; it must be in PEM"
            if key is None:
                text += ", in this file or in the file of PCM_TLS_KEY"
        else:
            text = f"tls_cert: {cert}: holds no certificate; it must be in PEM"
        raise ValueError(text) from None


def _contains(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


def explain_failure(error: BaseException, url: URL, *, has_certificate: bool) -> str:
    """Explain an error that TLS may have caused, and its remedy; else return an empty text."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _verification_reason(cause, url)
    if isinstance(cause, ssl.SSLError):
        return _tls_reason(cause)
    if not _was_closed(error):
        return ""
    # With TLS 1.3 the broker checks our certificate after our handshake has ended. A connection
    # reset then loses its reason.
    if url.scheme != "amqps":
        why = (
            "does the port use TLS? Then write amqps:// in PCM_AMQP_URL; else write the amqp port,"
            " 5672 by default"
        )
    elif has_certificate:
        why = (
            "does it accept PCM_TLS_CERT? That must be a client certificate, signed by an authority"
            " that the broker trusts, and not expired"
        )
    else:
        why = "does it require a client certificate? Name its file in PCM_TLS_CERT"
    return f"it closed the connection before the AMQP handshake: {why}"


def _verification_reason(error: ssl.SSLCertVerificationError, url: URL) -> str:
    if error.verify_code in (_HOST_NAME, _ADDRESS):
        return f"its certificate is not for {url.host}: write a name that it has in PCM_AMQP_URL"
    if error.verify_code in _UNKNOWN_AUTHORITY:
        return (
            "its certificate is not signed by a trusted authority: name the authority's file in"
            " PCM_TLS_CA"
        )
    if error.verify_code == _EXPIRED:
        return "its certificate has expired: renew it there, or correct this machine's clock"
    if error.verify_code == _NOT_YET:
        return "its certificate is not valid yet: is the clock of this machine right?"
    return f"its certificate is not valid: {error.verify_message}"


def _tls_reason(error: ssl.SSLError) -> str:
    reason = error.reason or str(error)
    for word, text in _REASONS:
        if word in reason:
            return text
    return f"TLS: {reason.replace('_', ' ').lower()}"


def _was_closed(error: BaseException) -> bool:
    """Whether the broker closed the connection without AMQP, or with a TLS alert."""
    from asyncio import IncompleteReadError  # settings import this module, without these

    from aio_pika.exceptions import InvalidFrameError

    closed = IncompleteReadError | ConnectionResetError | BrokenPipeError
    return isinstance(error, closed | InvalidFrameError) or isinstance(error.__cause__, closed)
