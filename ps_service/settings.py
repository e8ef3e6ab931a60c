# SPDX-License-Identifier: Apache-2.0
"""Every setting of the server. The only reader of the environment in this package: `FED_SOPHIA_…`, and what
the vendors of object stores have named.
"""

import os
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_OBJECT_STORES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
_CLIENT_OPTIONS = (
    "ALLOW_HTTP",
    "ALLOW_INVALID_CERTIFICATES",
    "CONNECT_TIMEOUT",
    "POOL_IDLE_TIMEOUT",
    "POOL_MAX_IDLE_PER_HOST",
    "PROXY_CA_CERTIFICATE",
    "PROXY_EXCLUDES",
    "PROXY_URL",
    "READ_TIMEOUT",
    "TIMEOUT",
)


class Settings(BaseSettings):
    """What an operator may set; each field is also `FED_SOPHIA_<NAME>` in the environment."""

    model_config = SettingsConfigDict(env_prefix="FED_SOPHIA_", frozen=True, extra="ignore")

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Port to listen on; 0 takes any free one."""
    tls_cert: Path | None = None
    """The server's certificate and those that vouch for it, as PEM, its own first."""
    tls_key: Path | None = None
    """Its private key, as PEM."""
    tls_ca: Path | None = None
    """The CA for workers to pin; None: the last certificate of `tls_cert`, if it vouches for itself."""
    tls_client_ca: Path | None = None
    """Only who shows a certificate of this CA is let in."""
    insecure: bool = False
    """Whether plain HTTP may be spoken beyond this machine."""
    server_data_dir: Path = Path("fed-sophia-data")
    """Directory of the database, the tensors and the first credentials."""
    server_operator_key_file: Path | None = None
    """File of an operator key that is good from the start; None: the first start makes one."""
    database_url: SecretStr = SecretStr("")
    """The PostgreSQL that several servers share: postgresql://user:password@host/name; empty: a file of the
    data directory."""
    blobs_url: str = ""
    """Where tensors are kept: s3://bucket/prefix, gs://, az://; empty: files of the data directory."""
    blobs_public_url: str = ""
    """Where workers reach an S3 store, if elsewhere than the server does: https://s3.example."""
    max_body_bytes: int = Field(default=4 * 1024**3, ge=1)
    """Largest tensor message accepted."""
    max_json_bytes: int = Field(default=4 * 1024**2, ge=1024)
    """Largest JSON body accepted."""
    max_wait_s: float = Field(default=600.0, ge=0, le=600)
    """Longest time a request for an assignment waits, whatever it prefers."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """A body that falls behind for so long is given up; a refused one is read on for so long."""
    min_body_bytes_per_s: float = Field(default=256.0, ge=0)
    """The least pace of a tensor message, over the time above."""
    proxy_keep_alive_s: int = Field(default=75, ge=1)
    """How long a connection of a trusted proxy stays open on which nothing is asked."""
    max_header_bytes: int = Field(default=16_384, ge=1024)
    """Longest request line and headers."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """A connection whose next request has begun, but not its body, within so long is closed."""
    trusted_proxies: str = ""
    """Addresses and networks, with commas between, whose `X-Forwarded-For` and `-Proto` count."""
    max_num_examples: int = Field(default=10_000_000, ge=1)
    """Most examples that a worker may claim: an update weighs as much as its examples."""
    max_model_tensors: int = Field(default=5_000, ge=1, le=5_000)
    """Most tensors of a model."""
    max_model_bytes: int = Field(default=8 * 1024**3, ge=1)
    """Largest model, its values taken as float32."""
    max_run_disk_bytes: int = Field(default=256 * 1024**3, ge=1)
    """What the updates of one run may take on disk, declared and held."""
    max_uploads: int = Field(default=64, ge=1)
    """Bodies of tensor messages taken at a time."""
    max_uploads_per_worker: int = Field(default=4, ge=1)
    """Of them, so many of one worker."""
    max_waiting: int = Field(default=20_000, ge=1)
    """Requests that wait for an assignment at a time."""
    max_waiting_per_worker: int = Field(default=4, ge=1)
    """Of them, so many of one worker."""
    requests_per_s_per_worker: float = Field(default=50.0, ge=1)
    """Requests of one worker, in the long run; ten seconds' worth of them may come at once."""
    requests_per_s_per_address: float = Field(default=1000.0, ge=1)
    """Requests from one address, in the long run; twenty seconds' worth of them may come at once."""
    lost_after_s: float = Field(default=90.0, ge=1, le=86_400)
    """A worker from which nothing was heard for so long counts as lost until it comes back."""
    access_token_s: int = Field(default=600, ge=60, le=3600)
    """How long a worker's access token is good for."""
    quarantine_after: int = Field(default=3, ge=0, le=1000)
    """Refused updates in a row after which a worker is asked for nothing; 0: never."""
    metrics_public: bool = False
    """Whether `/metrics` answers without an operator key."""
    drain_s: float = Field(default=10.0, ge=0)
    """How long requests that are being answered may go on after a stop was asked for."""

    @field_validator("blobs_public_url")
    @classmethod
    def _scheme_and_host(cls, value: str) -> str:
        place = urlsplit(value)
        beside = (place.path.strip("/"), place.query, place.fragment, place.username, place.password)
        if value and (place.scheme not in ("http", "https") or not place.hostname or any(beside)):
            raise ValueError("expected http(s)://host[:port]")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: str) -> str:
        networks = [str(ip_network(each.strip())) for each in value.split(",") if each.strip()]
        return ",".join(networks)


def object_client_options(scheme: str) -> dict[str, str]:
    """What the environment says of how an object store is spoken to: `AWS_ALLOW_HTTP` and its like.

    Whose and where the store is obstore reads itself, and these too unless it is given any, as it is by us.

    Args: scheme: of the store's URL: s3, gs or az.
    """
    prefix = _OBJECT_STORES[scheme]
    return {
        option.lower(): os.environ[f"{prefix}{option}"]
        for option in _CLIENT_OPTIONS
        if f"{prefix}{option}" in os.environ
    }
