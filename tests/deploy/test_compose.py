# SPDX-License-Identifier: Apache-2.0
"""The federation of one machine is made of what the manifests are made of."""

import re
from typing import Any

import pytest
import yaml

from ps_service.settings import Settings
from tests.deploy.confinement import VERSION
from tests.deploy.federation import SETTINGS, options_and_variables
from tests.deploy.manifests import K8S, ROOT

FILE = ROOT / "deploy" / "compose.yaml"
COMPOSED: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSED["services"]
OURS = {name: each for name, each in SERVICES.items() if each["image"].startswith("fed-sophia-")}
STORES = {"postgres": "postgres/postgres.yaml", "s3": "s3/s3.yaml"}


def variables(service: dict[str, Any]) -> dict[str, str]:
    """What it is told, that of its files included."""
    found: dict[str, str] = {}
    for name in service.get("env_file", []):
        lines = (FILE.parent / name).read_text("utf-8").splitlines()
        found |= dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return found | service["environment"]


def test_a_server_its_stores_and_two_workers_are_there() -> None:
    assert set(SERVICES) == {"postgres", "s3", "server", "worker-1", "worker-2"}


def command_lines(service: dict[str, Any]) -> list[list[str]]:
    """What it runs of ours, one after the other."""
    if service.get("entrypoint") == ["sh", "-ec"]:
        [script] = service["command"]
        return [line.removeprefix("exec ").split() for line in script.split("; ")]
    return [["fed-sophia", *service["command"]]]


def test_the_server_migrates_its_database_first_and_is_told_itself_to_stop() -> None:
    [script] = SERVICES["server"]["command"]
    assert command_lines(SERVICES["server"]) == [
        ["fed-sophia", "database", "migrate"],
        ["fed-sophia", "serve"],
    ]
    assert "exec fed-sophia serve" in script


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "mem_limit" in service and not service.get("privileged")
    assert service["user"] == {"postgres": "999:999", "s3": "0:0"}.get(name, "10001:10001")


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_is_this_version_and_can_be_built(name: str) -> None:
    image, build = OURS[name]["image"], OURS[name]["build"]
    part = "worker" if name.startswith("worker") else "server"
    assert image == f"fed-sophia-{part}:{VERSION}"
    assert (FILE.parent / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).name == f"{part}.Containerfile" and (
        ROOT / build["dockerfile"]
    ).exists()


@pytest.mark.parametrize("name", OURS)
def test_a_service_of_ours_is_told_nothing_that_nobody_reads(name: str) -> None:
    *_, words = command_lines(OURS[name])
    options, of_command = options_and_variables([word for word in words if not word.startswith("-")])
    told = {each for each in variables(OURS[name]) if each.startswith("FED_SOPHIA_")}
    assert told - of_command - (set() if name.startswith("worker") else SETTINGS) == set()
    used = {word.partition("=")[0] for word in words if word.startswith("-")}
    assert used - options == set()


def test_the_server_has_settings_that_are_valid_and_both_stores() -> None:
    told = variables(SERVICES["server"])
    prefix = "FED_SOPHIA_"
    settings = Settings.model_validate(
        {name.removeprefix(prefix).lower(): value for name, value in told.items() if name.startswith(prefix)}
    )
    assert settings.host == "0.0.0.0" and settings.insecure
    assert "@postgres:5432/" in settings.database_url.get_secret_value()
    assert settings.blobs_url.startswith("s3://") and told["AWS_ENDPOINT"] == "http://s3:8333"
    assert SERVICES["server"]["ports"] == [f"127.0.0.1:8080:{settings.port}"], "plain HTTP, so not beyond it"
    assert SERVICES["server"]["volumes"] == [f"server:{settings.server_data_dir}"]
    assert int(SERVICES["server"]["stop_grace_period"].removesuffix("s")) >= settings.drain_s + 10


def test_workers_do_not_see_the_stores() -> None:
    of_stores = {name for name, each in SERVICES.items() if "stores" in each["networks"]}
    assert of_stores == {"postgres", "s3", "server"}
    assert COMPOSED["networks"]["stores"]["internal"] is True


def test_workers_have_a_volume_and_a_part_of_the_data_each() -> None:
    workers = [SERVICES["worker-1"], SERVICES["worker-2"]]
    assert len({each["volumes"][0] for each in workers}) == 2
    indices = [word for each in workers for word in each["command"] if word.startswith("--partition-index=")]
    assert indices == ["--partition-index=0", "--partition-index=1"]


@pytest.mark.parametrize(("name", "manifest"), STORES.items())
def test_a_store_is_the_one_of_the_manifests(name: str, manifest: str) -> None:
    text = (K8S / "components" / manifest).read_text("utf-8")
    [stateful] = [each for each in yaml.safe_load_all(text) if each["kind"] == "StatefulSet"]
    [container] = stateful["spec"]["template"]["spec"]["containers"]
    service = SERVICES[name]
    assert service["image"] == container["image"]
    assert service.get("entrypoint") == container.get("command")
    assert set(service["environment"]) == {each["name"] for each in container["env"]}
    mounted = {each["mountPath"] for each in container["volumeMounts"]}
    written = {each.partition(":")[2] for each in service["volumes"]} | {
        each.partition(":")[0] for each in service["tmpfs"]
    }
    assert written == mounted


def test_nothing_secret_is_written_and_what_is_to_be_given_is_in_the_guide() -> None:
    secret = re.compile(r"PASSWORD|SECRET|TOKEN|DATABASE_URL")
    for name, service in SERVICES.items():
        for variable, value in service["environment"].items():
            if secret.search(variable):
                assert re.search(r"\$\{\w+:[?-]", value), f"{name}: {variable} is written down"
    asked = set(re.findall(r"\$\{(\w+):", FILE.read_text("utf-8")))
    guide = (ROOT / "docs" / "howto" / "build-images.md").read_text("utf-8")
    assert asked == set(re.findall(r"([A-Z][A-Z_0-9]+)=%s", guide))
    assert "deploy/.env" in (ROOT / ".gitignore").read_text("utf-8").splitlines()
