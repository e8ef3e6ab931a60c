# SPDX-License-Identifier: Apache-2.0
"""Signed requests of S3 whose headers are signed too: whoever has one can send those bytes, and no others.

obstore signs no headers. Loads botocore, which knows the ways to credentials that obstore knows. Source: AWS
Signature Version 4, query parameters; `x-amz-checksum-sha256` of S3's PutObject.
"""

import base64
import hashlib
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.session import Session

from protocol.errors import StorageUnavailable

ANSWERS_WITHIN_S = 5.0
REFUSED = 400
"""What S3 answers to bytes that do not have the checksum."""


@dataclass(frozen=True)
class S3Signer:
    """Signs requests to one store in the name of the server."""

    public_url: str
    """Where others reach the store, scheme and host; empty: where the server does."""
    credentials: Callable[[], Credentials | None]

    def sign(
        self, method: str, plain: str, headers: Mapping[str, str], good_for_s: int, *, public: bool = True
    ) -> str:
        """Sign a request with all of its headers.

        Args: plain: the same request as obstore signs it: it knows the place and the region.

        Raises:
            StorageUnavailable: there are no credentials now.
        """
        place = urlsplit(plain)
        region = parse_qs(place.query)["X-Amz-Credential"][0].split("/")[2]
        public_place = urlsplit(self.public_url if public and self.public_url else plain)
        url = urlunsplit((public_place.scheme, public_place.netloc, place.path, "", ""))
        credentials = self.credentials()
        if credentials is None:
            raise StorageUnavailable("there are no credentials to sign addresses of the object store with")
        request = AWSRequest(method=method, url=url, headers=dict(headers))
        S3SigV4QueryAuth(credentials.get_frozen_credentials(), "s3", region, good_for_s).add_auth(request)
        return str(request.url)


def credentials_of_environment() -> Callable[[], Credentials | None]:
    """As obstore finds them: variables, files, the machine's role; renewed when they end."""
    session = Session()
    return session.get_credentials


def only_these_bytes(digest: str, size_bytes: int) -> dict[str, str]:
    """Headers by which the store takes a message with this SHA-256, in hex, and this length alone."""
    return {"x-amz-checksum-sha256": checksum(bytes.fromhex(digest)), "Content-Length": str(size_bytes)}


def checksum(sha256: bytes) -> str:
    return base64.b64encode(sha256).decode()


def refuses_other_bytes(sign: Callable[[Mapping[str, str]], str]) -> bool:
    """Whether a store compares what it is sent with the checksum that was signed: found out by trying.

    Args: sign: gives the address of a PUT of one object, with these headers.

    Raises:
        StorageUnavailable: it cannot be told: the store does not answer, or takes no such address at all.
    """
    sent = b"checked"
    right, wrong = (checksum(hashlib.sha256(data).digest()) for data in (sent, b"other"))
    if (status := _put(sign, right, sent)) >= REFUSED:
        raise StorageUnavailable(f"the object store answers a pre-signed request with status {status}")
    return _put(sign, wrong, sent) == REFUSED


def _put(sign: Callable[[Mapping[str, str]], str], sha256: str, data: bytes) -> int:
    headers = {"x-amz-checksum-sha256": sha256, "Content-Length": str(len(data))}
    request = urllib.request.Request(sign(headers), data, headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code
    except OSError as error:
        why = f"a pre-signed request is not answered ({type(error).__name__})"
        raise StorageUnavailable(why) from None
