# SPDX-License-Identifier: Apache-2.0
"""Signed requests of S3 whose headers are signed too: whoever has one can send those bytes, and no others.

obstore signs no headers. Loads botocore, which knows the ways to credentials that obstore knows. Source: AWS
Signature Version 4, query parameters; `x-amz-checksum-sha256` of S3's PutObject.
"""

import base64
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit, urlunsplit

from botocore.auth import S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import BotoCoreError
from botocore.session import Session

from protocol.errors import StorageUnavailable

ANSWERS_WITHIN_S = 5.0
REFUSED = 400
"""What S3 answers to bytes that do not have the checksum."""
_TAKEN = range(200, 300)


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
        region = parse_qs(place.query)["X-Amz-Credential"][0].split("/")[-3]  # behind a key and a day
        public_place = urlsplit(self.public_url if public and self.public_url else plain)
        url = urlunsplit((public_place.scheme, public_place.netloc, place.path, "", ""))
        request = AWSRequest(method=method, url=url, headers=dict(headers))
        try:
            credentials = self.credentials()
            if credentials is None:
                raise StorageUnavailable("there are no credentials to sign addresses of the store with")
            S3SigV4QueryAuth(credentials.get_frozen_credentials(), "s3", region, good_for_s).add_auth(request)
        except BotoCoreError as error:
            why = f"addresses of the store cannot be signed ({type(error).__name__})"
            raise StorageUnavailable(why) from error
        return str(request.url)


def credentials_of_environment() -> Callable[[], Credentials | None]:
    """As obstore finds them: variables, files, the machine's role; renewed when they end."""
    session = Session()
    return session.get_credentials


def only_these_bytes(digest: str, size_bytes: int) -> dict[str, str]:
    """Headers by which the store takes a message with this SHA-256, in hex, once, and nothing else."""
    return only_so_many(size_bytes) | {
        "x-amz-checksum-sha256": checksum(bytes.fromhex(digest)),
        "If-None-Match": "*",  # what is there stays as it is, with all that is said of it
    }


def only_so_many(size_bytes: int) -> dict[str, str]:
    return {"Content-Length": str(size_bytes)}


def checksum(sha256: bytes) -> str:
    return base64.b64encode(sha256).decode()


def refuses_other_bytes(put: Sequence[Callable[[dict[str, str], bytes], int]]) -> bool:
    """Whether a store compares what it is sent with the checksum that was signed: found out by trying.

    Args: put: each puts bytes with these headers, in the place of an object that is not there, and gives the
        status of the answer.

    Raises:
        StorageUnavailable: it cannot be told: the store does not answer, or takes no such address at all.
    """
    sent, other = b"checked", hashlib.sha256(b"other").hexdigest()
    right = put[0](only_these_bytes(hashlib.sha256(sent).hexdigest(), len(sent)), sent)
    if right not in _TAKEN:
        raise StorageUnavailable(f"the object store answers a pre-signed request with status {right}")
    wrong = put[1](only_these_bytes(other, len(sent)), sent)
    if wrong not in _TAKEN and wrong != REFUSED:
        raise StorageUnavailable(f"the object store answers bytes of another SHA-256 with status {wrong}")
    return wrong == REFUSED


def put_by_http(url: str, headers: dict[str, str], data: bytes) -> int:
    """The status of the answer; raises StorageUnavailable: there is none."""
    request = urllib.request.Request(url, data, headers, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=ANSWERS_WITHIN_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code
    except (OSError, http.client.HTTPException) as error:
        why = f"a pre-signed request is not answered ({type(error).__name__})"
        raise StorageUnavailable(why) from None
