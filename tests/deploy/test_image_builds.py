# SPDX-License-Identifier: Apache-2.0
"""Images built for real, which takes minutes, a network and podman: docs/howto/build-images.md.

    FED_SOPHIA_IMAGES=1 pytest tests/deploy/test_image_builds.py

Words of `FED_SOPHIA_IMAGES_OPTIONS` are given to each `podman build`: another base, a pip.conf.
"""

import os
import secrets
import shlex
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.manifests import ROOT
from tests.deploy.test_images import PARTS, USER

BUILDS_WITHIN_S, RUNS_WITHIN_S = 900, 120
MAX_SERVER_BYTES = 250_000_000
"""Of what the server's image adds to its base."""

pytestmark = [
    pytest.mark.skipif("FED_SOPHIA_IMAGES" not in os.environ, reason="takes minutes: FED_SOPHIA_IMAGES=1"),
    pytest.mark.timeout(BUILDS_WITHIN_S + RUNS_WITHIN_S),
]


def podman(*words: str, within_s: float = RUNS_WITHIN_S) -> str:
    done = subprocess.run(
        ["podman", *words], capture_output=True, text=True, timeout=within_s, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module", params=PARTS)
def image(request: pytest.FixtureRequest) -> str:
    name = f"fed-sophia-{request.param}:test"
    options = shlex.split(os.environ.get("FED_SOPHIA_IMAGES_OPTIONS", ""))
    file = f"deploy/images/{request.param}.Containerfile"
    podman("build", *options, "-f", file, "-t", name, ".", within_s=BUILDS_WITHIN_S)
    return name


CONFINED = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--tmpfs=/tmp:size=64m")


@pytest.fixture
def server(image: str) -> Iterator[tuple[str, str]]:
    """(container, URL) of a server that answers."""
    if "server" not in image:
        pytest.skip("is no server")
    name = f"fed-sophia-test-{secrets.token_hex(4)}"
    told = ("--env=FED_SOPHIA_HOST=0.0.0.0", "--env=FED_SOPHIA_INSECURE=true")
    volume = f"--volume={name}:/var/lib/fed-sophia"
    podman("run", "--detach", f"--name={name}", *CONFINED, *told, volume, "-p=127.0.0.1::8080", image)
    try:
        address = podman("port", name, "8080/tcp").strip()
        yield name, f"http://{address}"
    finally:
        podman("rm", "--force", name)
        podman("volume", "rm", name)


def answers(url: str) -> bool:
    until = time.monotonic() + RUNS_WITHIN_S
    while time.monotonic() < until:
        try:
            if httpx.get(url, timeout=2).is_success:
                return True
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    return False


def test_a_server_answers_without_root_on_a_root_that_is_read_only_and_stops_tidily(
    server: tuple[str, str],
) -> None:
    name, url = server
    assert answers(f"{url}/healthz") and answers(f"{url}/readyz")
    assert podman("exec", name, "id", "-u").strip() == str(USER)
    podman("stop", "--time=60", name)
    assert podman("inspect", name, "--format={{.State.ExitCode}}").strip() == "0"


def test_a_server_has_no_pytorch_and_is_small(server: tuple[str, str]) -> None:
    name, _ = server
    look = "import importlib.util as u; print(u.find_spec('torch') or u.find_spec('sklearn'))"
    assert podman("exec", name, "python", "-c", look).strip() == "None"
    size_kb = int(podman("exec", name, "du", "-sk", "/opt/fed-sophia").split()[0])
    assert size_kb * 1024 < MAX_SERVER_BYTES


def test_an_image_starts_our_command_line_as_a_user_without_rights(image: str) -> None:
    assert podman("run", "--rm", *CONFINED, image, "--version").startswith("fed-sophia ")
    assert podman("run", "--rm", *CONFINED, "--entrypoint=id", image, "-un").strip() == "fed-sophia"
