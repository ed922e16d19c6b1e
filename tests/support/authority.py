"""A small authority of the tests' own, and the files of certificates that it issues."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import trustme


class Files(NamedTuple):
    """Where a certificate is, and its key."""

    cert: Path
    key: Path


class Authority:
    """Issues certificates, in a folder; `file` is what those who trust it are given."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA(organization_name=name)
        self._folder = folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *hosts: str, name: str = "", expired: bool = False) -> Files:
        """Issue a certificate for hosts, with a common name."""
        files = Files(
            *(self._folder / f"{name or hosts[0]}-{what}.pem" for what in ("cert", "key"))
        )
        ended = datetime.now(UTC) - timedelta(days=1)
        issued = self._ca.issue_cert(
            *hosts,
            common_name=name or None,
            not_before=ended - timedelta(days=30) if expired else None,
            not_after=ended if expired else None,
        )
        for blob in issued.cert_chain_pems[:1]:
            blob.write_to_path(files.cert)
        issued.private_key_pem.write_to_path(files.key)
        return files
