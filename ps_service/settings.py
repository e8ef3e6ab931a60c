# SPDX-License-Identifier: Apache-2.0
"""Every setting of the server. The only reader of the environment in this package: `FED_SOPHIA_…`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    max_body_bytes: int = Field(default=4 * 1024**3, ge=1)
    """Largest tensor message accepted."""
    max_json_bytes: int = Field(default=4 * 1024**2, ge=1024)
    """Largest JSON body accepted."""
    max_wait_s: float = Field(default=600.0, ge=0, le=600)
    """Longest time a request for an assignment waits, whatever it prefers."""
    body_timeout_s: float = Field(default=60.0, gt=0)
    """A body from which nothing arrives for so long is given up; a refused one is read on for so long."""
    lost_after_s: float = Field(default=90.0, ge=1, le=86_400)
    """A worker from which nothing was heard for so long counts as lost until it comes back."""
    metrics_public: bool = False
    """Whether `/metrics` answers without an operator key."""
    drain_s: float = Field(default=10.0, ge=0)
    """How long requests that are being answered may go on after a stop was asked for."""
