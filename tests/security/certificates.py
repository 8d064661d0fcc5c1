"""Certificates made for one test, as PEM files."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import trustme

from edge_client.link.security import Security


class Pair(NamedTuple):
    """A certificate chain and its private key."""

    certificate: Path
    key: Path


class Authority:
    """A certificate authority and its files in a folder."""

    def __init__(self, folder: Path, name: str = "authority") -> None:
        self._ca, self._folder = trustme.CA(), folder
        self.file = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def pair(self, name: str, *identities: str, common_name: str | None = None) -> Pair:
        """Issue a certificate; a pair of the same name is replaced."""
        issued = self._ca.issue_cert(*identities, common_name=common_name)
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(str(pair.key))
        return pair

    def trusted(self, shown: Pair | None = None) -> Security:
        """Of a device that trusts this authority and shows a certificate."""
        return Security(
            ca_certificate=self.file,
            certificate=shown.certificate if shown else None,
            key=shown.key if shown else None,
        )
