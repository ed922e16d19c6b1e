"""Decide whether manifests and lists of channels are signed by keys that may publish packages."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from schemas import ChannelList, Manifest, SignedText
from schemas.errors import PcmError

if TYPE_CHECKING:
    from broker.signing.trusted_keys import Keyring


class NotTrusted(PcmError):
    """No trusted key that may publish it has signed a manifest or a list; the text says why."""


def signers(
    document: "Manifest | ChannelList", signed: SignedText, keyring: "Keyring | None"
) -> list[str]:
    """Return the owners of the trusted keys that signed a document and may publish it.

    Without trusted keys nothing is asked, and nothing is returned.

    Raises:
        NotTrusted: there are trusted keys, and none that may publish it has signed it.
    """
    if keyring is None:
        return []
    names, reasons = [], []
    now = datetime.now(UTC)
    for verdict in keyring.verify(document, signed.content, signed.signatures):
        if verdict.key is None:
            reasons.append(verdict.reason)
        elif reason := verdict.key.objection_to_publisher(_packages(document), now):
            reasons.append(f"the key of {verdict.key.name} {reason}")
        else:
            names.append(verdict.key.name)
    if not names:
        raise NotTrusted("; ".join(reasons) or "it is not signed")
    return names


def _packages(document: "Manifest | ChannelList") -> Iterable[str]:
    if isinstance(document, Manifest):
        return (document.name,)
    return (package.name for package in document.packages)
