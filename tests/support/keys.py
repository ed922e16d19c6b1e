"""Keys for tests: a folder of those that are trusted, and private ones in files."""

from pathlib import Path
from typing import Any

from broker.signing.signer import Signer, make_key
from schemas import TrustedKey


class Keys:
    """A folder of trusted keys, and who signs with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "trusted"
        self.folder.mkdir(mode=0o755)
        self._private = folder
        self._made = 0
        self.private: dict[str, Path] = {}
        """The files of the private keys that were made last, by name."""

    def make(self, name: str) -> Signer:
        """Make a key."""
        self._made += 1
        self.private[name] = self._private / f"{name}-{self._made}.key"
        return make_key(name, self.private[name])

    def trust(self, name: str, **scope: Any) -> Signer:
        """Make a key that is trusted."""
        signer = self.make(name)
        key = TrustedKey(name=name, key=signer.public_text, **scope)
        self.path(name).write_bytes(key.body())
        return signer

    def path(self, name: str) -> Path:
        """Return where a trusted key is."""
        return self.folder / f"{name}.pub"
