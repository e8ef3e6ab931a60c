# SPDX-License-Identifier: Apache-2.0
"""Images that podman builds of this checkout, and the server's Deployment as `podman kube play` runs it.

Words of `FED_SOPHIA_IMAGES_OPTIONS` are given to each `podman build`: another base, a pip.conf.
"""

import asyncio
import base64
import os
import re
import secrets
import shlex
import signal
import subprocess
import time
from pathlib import Path

import httpx
import yaml

from tests.deploy.manifests import K8S, ROOT, rendered
from tests.system.conftest import ServerProcess

BUILDS_WITHIN_S, RUNS_WITHIN_S, DRAINS_WITHIN_S = 900, 120, 60
DECODES_SECRETS = (4, 4)
"""podman's version."""


def podman(*words: str, within_s: float = RUNS_WITHIN_S, given: str | None = None) -> str:
    """What it says; args: given: on its standard input."""
    done = subprocess.run(
        ["podman", *words],
        input=given,
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def built(part: str) -> str:
    """The name of the image of the server, or of a worker; what was built before is not built again."""
    name = f"fed-sophia-{part}:test"
    options = shlex.split(os.environ.get("FED_SOPHIA_IMAGES_OPTIONS", ""))
    file = f"deploy/images/{part}.Containerfile"
    podman("build", *options, "-f", file, "-t", name, ".", within_s=BUILDS_WITHIN_S)
    return name


def answers(url: str) -> bool:
    """Whether it says within a while that all is well."""
    until = time.monotonic() + RUNS_WITHIN_S
    while time.monotonic() < until:
        try:
            if httpx.get(url, timeout=2).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def make_secret(name: str, key: str, value: str) -> None:
    """A Secret of Kubernetes, as this podman wants to have it."""
    version = podman("version", "--format={{.Client.Version}}")
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) >= DECODES_SECRETS:
        value = base64.b64encode(value.encode()).decode()
    podman("secret", "create", name, "-", given=f"data: {{{key}: {value}}}\n")


class ServerInPod(ServerProcess):
    """The Deployment of `deploy/k8s/podman/server`, under a name, a port and an operator's key of its own."""

    def __init__(self, folder: Path, image: str) -> None:
        super().__init__(folder)
        self.name = f"fed-sophia-test-{secrets.token_hex(4)}"
        text = yaml.safe_dump_all(rendered(K8S / "podman" / "server"))
        for found, instead in (
            ("fed-sophia-server:0.1.0", image),
            ("name: fed-sophia-server\n", f"name: {self.name}\n"),
            ("fed-sophia-data", f"{self.name}-data"),
            ("fed-sophia-operator-key", f"{self.name}-key"),
            ("8080", str(self.port)),
        ):
            assert found in text
            text = text.replace(found, instead)
        self._manifest = text
        self._played = False

    @property
    def container(self) -> str:
        """Its name, which differs by podman's version."""
        [name] = podman("ps", "--all", f"--filter=name=^{self.name}-pod", "--format={{.Names}}").split()
        return name

    def said(self) -> str:
        """Its log."""
        command = ["podman", "logs", self.container]
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=True
        ).stdout

    async def start(self) -> None:
        """Come back once it is ready."""
        await asyncio.to_thread(self._start)
        assert await asyncio.to_thread(answers, f"{self.url}/readyz"), self.said()

    def _start(self) -> None:
        if self._played:
            podman("start", self.container)
            return
        self.data_dir.mkdir()
        key = f"fso_{secrets.token_hex(32)}"
        (self.data_dir / "operator.key").write_text(key)
        make_secret(f"{self.name}-key", "key", key)
        self._played = True
        podman("kube", "play", "-", given=self._manifest)

    async def end(self, number: signal.Signals) -> int:
        """Stop it as a kubelet does, or kill it; give its exit status."""
        if number == signal.SIGKILL:
            await asyncio.to_thread(podman, "kill", self.container)
        else:
            await asyncio.to_thread(podman, "stop", f"--time={DRAINS_WITHIN_S}", self.container)
        return int(podman("inspect", self.container, "--format={{.State.ExitCode}}"))

    def remove(self) -> None:
        """Leave nothing of it behind."""
        pods = podman("pod", "ps", f"--filter=name=^{self.name}-pod", "--format={{.Name}}").split()
        if pods:
            podman("pod", "rm", "--force", *pods)
        for kind in ("volume", "secret"):
            names = podman(kind, "ls", "--format={{.Name}}").split()
            for name in (each for each in names if each.startswith(self.name)):
                podman(kind, "rm", name)
