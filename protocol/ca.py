# SPDX-License-Identifier: Apache-2.0
"""By what a join token knows a server's CA: a hash of its public key."""

import hashlib

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def ca_hash_of(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER SubjectPublicKeyInfo, in hex: it outlives a renewal that keeps the key."""
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(info).hexdigest()
