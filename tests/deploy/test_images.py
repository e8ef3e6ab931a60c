# SPDX-License-Identifier: Apache-2.0
"""Images are built of the lock, run without root, and are those that the manifests start."""

import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.confinement import VERSION
from tests.deploy.manifests import K8S, ROOT

IMAGES = ROOT / "deploy" / "images"
PARTS = ("server", "worker")
USER = 10001
LINTS_WITHIN_S = 30


def containerfile(part: str) -> str:
    return (IMAGES / f"{part}.Containerfile").read_text("utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """(instruction, what follows it); lines that go on are joined, comments are left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined if line]


def complaints(text: str, part: str) -> Iterator[str]:
    """What is to be said against a Containerfile."""
    said = instructions(text)
    stages = [index for index, (word, _) in enumerate(said) if word == "FROM"]
    shipped = dict(said[stages[-1] :])
    if said[0] != ("ARG", "BASE=python:3.11-slim") or shipped["FROM"] != "${BASE}":
        yield "the base cannot be chosen"
    if any(not rest.startswith(("${", "dependencies")) for word, rest in said if word == "FROM"):
        yield "an image that is no argument"
    if "latest" in text or re.search(r"\w://|\.(com|org|io)/", text):
        yield "names what moves, or a place that not everybody reaches"
    if shipped.get("USER") != f"{USER}:{USER}" or f":{USER}:{USER}:" not in shipped["RUN"]:
        yield "runs as somebody else than the manifests say, or as nobody that is known"
    if f'version="{VERSION}"' not in shipped["LABEL"] or f"fed-sophia-{part}" not in shipped["LABEL"]:
        yield "is labelled as something else"
    for word, rest in said:
        installs = re.findall(r"install --no-cache-dir[^&]*", rest) if word == "RUN" else []
        if any(not re.search(r"-c requirements\.lock|--no-deps", each) for each in installs):
            yield "installs what is not in the lock"


@pytest.mark.parametrize("part", PARTS)
def test_nothing_is_to_be_said_against_a_containerfile(part: str) -> None:
    assert list(complaints(containerfile(part), part)) == []


@pytest.mark.parametrize(
    ("found", "instead", "complaint"),
    [
        ("FROM ${BASE}\n", "FROM python:3.11-slim\n", "cannot be chosen"),
        ("FROM ${BUILD} AS", "FROM python:3.11 AS", "no argument"),
        ("python:3.11-slim", "python:latest", "moves"),
        ("-c requirements.lock", "--index-url https://packages.example.org/simple", "not everybody"),
        ("-c requirements.lock", "", "not in the lock"),
        ("USER 10001:10001", "USER fed-sophia", "somebody else"),
        ("USER 10001:10001\n", "", "somebody else"),
        (f'version="{VERSION}"', 'version="0.0.9"', "something else"),
    ],
)
@pytest.mark.parametrize("part", PARTS)
def test_a_containerfile_that_is_spoiled_is_complained_of(
    part: str, found: str, instead: str, complaint: str
) -> None:
    text = containerfile(part)
    assert found in text
    assert any(complaint in each for each in complaints(text.replace(found, instead), part))


@pytest.fixture(scope="module")
def hadolint(require_part: Callable[[bool, str], None]) -> Callable[[str], str]:
    """Gives what hadolint says of a text."""
    program = Path(sys.executable).parent / "hadolint"
    require_part(program.exists(), "hadolint")

    def said(text: str) -> str:
        return subprocess.run(
            [program, "--no-color", "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=LINTS_WITHIN_S,
            check=False,
        ).stdout

    return said


@pytest.mark.parametrize("part", PARTS)
def test_hadolint_says_nothing_of_a_containerfile(part: str, hadolint: Callable[[str], str]) -> None:
    assert hadolint(containerfile(part)) == ""
    assert "DL3042" in hadolint(containerfile(part).replace(" --no-cache-dir", ""))


@pytest.mark.parametrize(
    ("part", "manifest"),
    [
        ("server", "base/deployment.yaml"),
        ("worker", "components/workers-cpu/workers.yaml"),
        ("worker", "components/workers-stateful/workers.yaml"),
    ],
)
def test_an_image_is_the_one_that_a_manifest_starts(part: str, manifest: str) -> None:
    pod = list(yaml.safe_load_all((K8S / manifest).read_text("utf-8")))[-1]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    text = containerfile(part)
    assert container["image"] == f"fed-sophia-{part}:{VERSION}"
    assert f"-t {container['image']} ." in text
    assert pod["securityContext"]["runAsUser"] == pod["securityContext"]["runAsGroup"] == USER
    folder = next(each for each in container["volumeMounts"] if each["name"] in ("data", "state"))
    assert f"install -d -m 0750 -o {USER} -g {USER} {folder['mountPath']} " in text
    [program, command] = container["command"]
    assert (f'ENTRYPOINT ["{program}"]' in text) and (f'CMD ["{command}"]' in text)
    ports = [("EXPOSE", str(port["containerPort"])) for port in container.get("ports", [])]
    assert [each for each in instructions(text) if each[0] == "EXPOSE"] == ports


def test_what_an_image_is_built_of_is_listed_and_no_folder_of_data_is() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    rules = [line for line in lines if not line.startswith("#")]
    assert rules[0] == "*"
    packages = {"fed_sophia", "protocol", "ps_service", "worker"}
    files = {"LICENSE", "README.md", "pyproject.toml", "requirements.lock", "deploy/images/*.py"}
    assert {rule.removeprefix("!") for rule in rules if rule.startswith("!")} == packages | files
    assert all(list(ROOT.glob(name)) for name in packages | files)


def test_a_server_depends_on_its_extras_and_not_on_pytorch() -> None:
    dependencies: Any = runpy.run_path(str(IMAGES / "dependencies.py"))["dependencies"]
    pyproject = (ROOT / "pyproject.toml").read_text("utf-8")
    names = {re.split(r"[^\w.-]", each)[0] for each in dependencies(pyproject, ["server", "cluster"])}
    assert {"numpy", "fastapi", "asyncpg", "obstore"} <= names
    assert not {"torch", "scikit-learn", "pytest"} & names


def test_what_nobody_reads_is_taken_out_and_the_rest_is_compiled_once(tmp_path: Path) -> None:
    trim: Any = runpy.run_path(str(IMAGES / "trim.py"))["trim"]
    packages = tmp_path / "lib" / "python3.11" / "site-packages"
    kept = ("botocore/data/sts/a.json", "numpy/_core/tests/_natype.py", "torch/bin/torch_shm_manager")
    gone = ("botocore/data/ec2/a.json", "anything/tests/test_it.py", "torch/bin/protoc", "torch/include/a.h")
    for name in (*kept, *gone, "module.py", "botocore/data/endpoints.json"):
        (packages / name).parent.mkdir(parents=True, exist_ok=True)
        (packages / name).write_text("")
    trim(tmp_path)
    assert [name for name in kept if not (packages / name).exists()] == []
    assert [name for name in gone if (packages / name).exists()] == []
    assert (packages / "botocore" / "data" / "endpoints.json").exists()
    [compiled] = packages.glob("__pycache__/module.*.pyc")
    assert compiled.read_bytes()[4:8] == b"\x01\x00\x00\x00", "by hash, and not compared (PEP 552)"
