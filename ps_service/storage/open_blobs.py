# SPDX-License-Identifier: Apache-2.0
"""Opens the blob store that the settings name."""

from pathlib import Path
from urllib.parse import urlsplit

from protocol.errors import InvalidUsage
from ps_service.settings import Settings, object_client_options
from ps_service.storage.blobs import BlobStore
from ps_service.storage.files import FileBlobs

KINDS = ("s3", "gs", "az")


def open_blobs(settings: Settings, directory: Path) -> BlobStore:
    """Files of the data directory, or objects elsewhere that are spooled there.

    Raises:
        InvalidUsage: the URL is of no known kind, or what speaks to object stores is not installed.
        StorageNotWritable: the disk of the data directory is full, read-only or failing.
    """
    if not settings.blobs_url:
        return FileBlobs(directory)
    place = urlsplit(settings.blobs_url)
    if place.scheme not in KINDS or not place.hostname:
        expected = " or ".join(f"{kind}://bucket/prefix" for kind in KINDS)
        raise InvalidUsage(f"FED_SOPHIA_BLOBS_URL: expected {expected}, got one of kind {place.scheme!r}")
    try:
        # a server on files has no need of it
        from ps_service.storage.addresses import Addresses
        from ps_service.storage.object_access import open_objects
        from ps_service.storage.objects import ObjectBlobs
    except ImportError:
        raise InvalidUsage(
            "FED_SOPHIA_BLOBS_URL is set, and its extra is not installed: pip install 'fed-sophia[cluster]'"
        ) from None
    objects = open_objects(settings.blobs_url, object_client_options(place.scheme))
    signer = None
    if place.scheme == "s3":
        from ps_service.storage.s3_signing import S3Signer, credentials_of_environment

        signer = S3Signer(settings.blobs_public_url, credentials_of_environment())
    return ObjectBlobs(objects, directory / "spool", Addresses(objects, place.scheme, signer))
