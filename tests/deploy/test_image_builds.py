# SPDX-License-Identifier: Apache-2.0
"""Images built for real, which takes minutes, a network and podman: docs/howto/build-images.md.

FED_SOPHIA_IMAGES=1 pytest tests/deploy/test_image_builds.py
"""

import os
import secrets
from collections.abc import Iterator

import pytest

from tests.deploy.containers import BUILDS_WITHIN_S, RUNS_WITHIN_S, answers, built, podman
from tests.deploy.test_images import PARTS, USER

MAX_SERVER_BYTES = 235_000_000
"""Of what the server's image adds to its base."""

pytestmark = [
    pytest.mark.skipif("FED_SOPHIA_IMAGES" not in os.environ, reason="takes minutes: FED_SOPHIA_IMAGES=1"),
    pytest.mark.timeout(BUILDS_WITHIN_S + RUNS_WITHIN_S),
]


@pytest.fixture(scope="module", params=PARTS)
def image(request: pytest.FixtureRequest) -> str:
    return built(request.param)


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
