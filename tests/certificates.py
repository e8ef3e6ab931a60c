# SPDX-License-Identifier: Apache-2.0
"""Certificates for tests: a CA, and what it issues, as the files that a server or a worker is given."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509

from protocol.ca import ca_hash_of


@dataclass(frozen=True)
class Issued:
    """One certificate, and its key."""

    chain: Path
    """The certificate, then its CA's."""
    key: Path


class Authority:
    """A CA whose certificate lies in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._ca = trustme.CA()
        self._issued = 0
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    @property
    def pem(self) -> bytes:
        return self.file.read_bytes()

    @property
    def hash(self) -> str:
        return ca_hash_of(x509.load_pem_x509_certificate(self.pem))

    def issue(self, name: str = "127.0.0.1", *, expired: bool = False, with_ca: bool = True) -> Issued:
        """A certificate for a name; another key every time."""
        now = datetime.now(UTC)
        until = now - timedelta(days=1) if expired else now + timedelta(days=1)
        made = self._ca.issue_cert(name, not_before=now - timedelta(days=2), not_after=until)
        self._issued += 1
        issued = Issued(self._folder / f"{self._issued}.pem", self._folder / f"{self._issued}.key")
        own = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        issued.chain.write_bytes(own + self.pem if with_ca else own)
        made.private_key_pem.write_to_path(str(issued.key))
        return issued
