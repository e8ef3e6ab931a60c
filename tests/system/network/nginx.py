# SPDX-License-Identifier: Apache-2.0
"""A real nginx with the configuration that we hand out, as a process on loopback that a test may kill.

It keeps all its files in a directory of its own and runs as whoever runs the tests.
"""

import asyncio
import os
import re
import shutil
import signal
import ssl
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.certificates import Authority
from tests.system.conftest import free_port
from worker.options import Trust
from worker.tls import tls_of

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
CONFIGURATION = DEPLOY / "nginx" / "fed-sophia.conf"
INGRESS = DEPLOY / "k8s" / "components" / "ingress-tls" / "ingress.yaml"
READY_S = 30.0
ANNOTATED = {
    "proxy-http-version": "proxy_http_version",
    "proxy-body-size": "client_max_body_size",
    "proxy-request-buffering": "proxy_request_buffering",
    "proxy-buffering": "proxy_buffering",
    "proxy-read-timeout": "proxy_read_timeout",
    "proxy-send-timeout": "proxy_send_timeout",
}
"""{annotation of ingress-nginx: nginx's directive}."""
SECONDS = {"proxy_read_timeout", "proxy_send_timeout"}
"""Directives whose annotations are numbers of seconds."""
ELSEWHERE = """
daemon off;
{user}
worker_processes 1;
error_log {directory}/error.log info;
pid {directory}/nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    include {directory}/fed-sophia.conf;
}}
"""
"""What a distribution's own nginx.conf says around ours."""


def nginx() -> str | None:
    """The program; Debian keeps it where only root looks."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")


def directives() -> dict[str, str]:
    """{directive: value} of the location that we hand out; of those that are said once."""
    said = re.findall(r"^ {8}(\w+) ([^;]+);", CONFIGURATION.read_text("utf-8"), flags=re.MULTILINE)
    return {name: value for name, value in said if name != "proxy_set_header"}


def annotated() -> dict[str, str]:
    """{directive: value} as the ingress component asks ingress-nginx for."""
    ingress: dict[str, Any] = yaml.safe_load(INGRESS.read_text("utf-8"))
    annotations = {
        name.removeprefix("nginx.ingress.kubernetes.io/"): value
        for name, value in ingress["metadata"]["annotations"].items()
        if name.startswith("nginx.ingress.kubernetes.io/proxy-")
    }
    assert set(annotations) == set(ANNOTATED), "each has its directive"
    values = {ANNOTATED[name]: value for name, value in annotations.items()}
    return {name: f"{value}s" if name in SECONDS else value for name, value in values.items()}


class NginxProcess:
    """One nginx before one server, started and killed as often as a test likes; its port stays."""

    def __init__(self, directory: Path, server_port: int, changes: dict[str, str] | None = None) -> None:
        """Args: changes: {a line of the configuration: what stands in its place}."""
        directory.mkdir()
        self._directory = directory
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        authority = Authority(directory / "authority")
        self.ca = authority.file
        issued = authority.issue()
        ours = {
            "server 127.0.0.1:8080;": f"server 127.0.0.1:{server_port};",
            "listen 443 ssl;": f"listen 127.0.0.1:{self.port} ssl;",
            "server_name fl.example.org;": "server_name 127.0.0.1;",
            "/etc/nginx/fed-sophia/chain.pem": str(issued.chain),
            "/etc/nginx/fed-sophia/server.key": str(issued.key),
        }
        text = CONFIGURATION.read_text("utf-8")
        for found, instead in (ours | (changes or {})).items():
            assert text.count(found) == 1, found
            text = text.replace(found, instead)
        (directory / "fed-sophia.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""  # else its workers could not read the test's folder
        (directory / "nginx.conf").write_text(ELSEWHERE.format(directory=directory, user=user))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def tls(self) -> ssl.SSLContext:
        """Connections that believe it alone."""
        return tls_of(Trust(ca=self.ca))

    async def start(self) -> None:
        """Come back once it accepts connections."""
        said = self._directory / "stderr"
        process = self._process = self._spawned(said)
        async with asyncio.timeout(READY_S):
            while not await self._accepts():
                assert process.poll() is None, said.read_text()
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """End it and its workers at once, with all connections."""
        if self._process is not None:
            if self._process.poll() is None:
                os.killpg(self._process.pid, signal.SIGKILL)  # a session of its own: nobody else is in it
            self._process.wait(READY_S)
            self._process = None

    def _spawned(self, said: Path) -> subprocess.Popen[bytes]:
        program = nginx()
        assert program is not None
        with said.open("ab") as log:
            return subprocess.Popen(
                [program, "-p", self._directory, "-c", self._directory / "nginx.conf", "-e", "stderr"],
                stdin=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
            )

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True
