# SPDX-License-Identifier: Apache-2.0
"""What `kubectl apply -k` would send is valid in three versions of Kubernetes, and keeps to our policies."""

import copy
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.deploy.manifests import (
    COMPONENTS,
    K8S,
    OVERLAYS,
    ROOT,
    Resources,
    environment,
    kubectl,
    named,
    of_kind,
    pods,
    rendered,
    rendered_together,
    shown,
)
from tests.deploy.policies import POLICIES
from tests.deploy.spoiled import SPOILED, Spoils

KUBERNETES = ("1.32", "1.35", "1.37")
OTHERS = {"monitoring.coreos.com/v1"}
"""Kinds that are not of Kubernetes: there is no schema of them here."""


@pytest.fixture(scope="module", autouse=True)
def with_kubectl(require_part: Callable[[bool, str], None]) -> None:
    require_part(kubectl() is not None, "kubectl 1.27 or later")


@pytest.fixture(scope="module")
def overlays() -> dict[str, Resources]:
    return {name: rendered(K8S / "overlays" / name) for name in OVERLAYS}


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Resources:
    """The cluster, with all components that it has not by itself."""
    place = K8S / "overlays" / "cluster"
    had = yaml.safe_load((place / "kustomization.yaml").read_text())["components"]
    more = [name for name in COMPONENTS if f"../../components/{name}" not in had]
    return rendered_together(tmp_path_factory.mktemp("everything"), place, more, "fed-sophia")


@pytest.fixture
def changed(everything: Resources) -> Resources:
    """A copy to be spoiled."""
    return copy.deepcopy(everything)


def complaints(resources: Resources, policy: str) -> list[str]:
    return list(POLICIES[policy](resources))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_keeps_to_the_policies(overlay: str, policy: str, overlays: dict[str, Resources]) -> None:
    assert complaints(overlays[overlay], policy) == []


@pytest.mark.parametrize("policy", POLICIES)
def test_all_components_together_keep_to_the_policies(policy: str, everything: Resources) -> None:
    assert complaints(everything, policy) == []


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_component_alone_goes_with_the_base(component: str, tmp_path: Path) -> None:
    resources = rendered_together(tmp_path, K8S / "base", [component])
    assert [complaint for policy in POLICIES for complaint in complaints(resources, policy)] == []


@pytest.mark.parametrize("part", ["server", "workers"])
def test_what_podman_runs_keeps_to_the_policies_but_for_the_network_of_its_machine(part: str) -> None:
    resources = rendered(K8S / "podman" / part)
    held = ("pods_are_confined", "resources_are_bounded", "images_are_pinned", "variables_exist")
    found = [each for policy in held for each in complaints(resources, policy)]
    assert [each for each in found if not each.endswith("shares its node's network or processes")] == []
    told = [environment(resources, container) for each in pods(resources) for container in each.containers]
    if part == "server":
        assert [(each["FED_SOPHIA_HOST"], each["FED_SOPHIA_INSECURE"]) for each in told] == [
            ("127.0.0.1", "false")
        ]
    else:
        assert [each["FED_SOPHIA_SERVER"] for each in told] == ["http://127.0.0.1:8080"] * 2


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_knows_every_field(
    version: str, everything: Resources, overlays: dict[str, Resources]
) -> None:
    seen = set()
    for resource in (*everything, *overlays["single-node"]):
        text = json.dumps(resource, sort_keys=True)
        if text not in seen and resource["apiVersion"] not in OTHERS:
            assert kubernetes_validate.validate(resource, version, strict=True) == version, shown(resource)
        seen.add(text)


@pytest.mark.parametrize("version", KUBERNETES)
def test_a_field_that_is_misspelt_is_found(version: str, changed: Resources) -> None:
    server = named(changed, "Deployment", "fed-sophia-server")
    server["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(kubernetes_validate.ValidationError, match="enableServiceLink"):
        kubernetes_validate.validate(server, version, strict=True)


def test_every_manifest_states_its_licence_first() -> None:
    files = [each for each in K8S.rglob("*") if each.is_file()]
    spdx = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [each for each in files if not each.read_text("utf-8").startswith(spdx)] == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_of_an_overlay_is_in_a_namespace_that_is_restricted(
    overlay: str, overlays: dict[str, Resources]
) -> None:
    [namespace] = of_kind(overlays[overlay], "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    rest = [each["metadata"].get("namespace") for each in overlays[overlay] if each is not namespace]
    assert set(rest) == {namespace["metadata"]["name"]}


def test_a_setting_that_changes_replaces_the_servers(tmp_path: Path, overlays: dict[str, Resources]) -> None:
    [before] = of_kind(overlays["cluster"], "ConfigMap")
    base = rendered_together(tmp_path, K8S / "base", ["s3"])
    [other] = of_kind(base, "ConfigMap")
    assert before["metadata"]["name"] != other["metadata"]["name"]
    server = named(base, "Deployment", "fed-sophia-server")["spec"]["template"]["spec"]["containers"][0]
    assert server["envFrom"] == [{"configMapRef": {"name": other["metadata"]["name"]}}]


def test_prometheus_asks_at_a_port_that_there_is_and_shows_a_key_from_a_secret(everything: Resources) -> None:
    [monitor] = of_kind(everything, "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    server = named(everything, "Deployment", "fed-sophia-server")["spec"]["template"]["spec"]["containers"][0]
    assert endpoint["port"] in {port["name"] for port in server["ports"]}
    assert set(endpoint["authorization"]["credentials"]) == {"name", "key"}


def test_every_secret_that_is_asked_for_is_in_the_guide(everything: Resources) -> None:
    guide = (ROOT / "docs" / "howto" / "deploy-kubernetes.md").read_text("utf-8")
    made = set(re.findall(r"create secret \w+ (\S+)", guide))
    assert set(_secrets(everything)) == made


def _secrets(value: object) -> Iterator[str]:
    """The names of all Secrets that are referred to."""
    if isinstance(value, list):
        for each in value:
            yield from _secrets(each)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key == "secretName":
                yield inner
            elif key in ("secretKeyRef", "credentials"):
                yield inner["name"]
            else:
                yield from _secrets(inner)


def test_the_federation_of_one_s_own_in_the_guide_can_be_rendered(tmp_path: Path) -> None:
    guide = (ROOT / "docs" / "howto" / "deploy-kubernetes.md").read_text("utf-8")
    [text] = re.findall(r"```yaml\n(.*?kind: Kustomization.*?)```", guide, flags=re.DOTALL)
    kustomization = yaml.safe_load(text)
    for kind in ("resources", "components"):
        kustomization[kind] = [
            os.path.relpath(ROOT / each.removeprefix("../fed-sophia/"), tmp_path.resolve())
            for each in kustomization[kind]
        ]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    resources = rendered(tmp_path)
    [ingress] = of_kind(resources, "Ingress")
    assert {rule["host"] for rule in ingress["spec"]["rules"]} == {"fl.hospital.example"}
    assert [complaint for policy in POLICIES for complaint in complaints(resources, policy)] == []


@pytest.mark.parametrize(("policy", "spoils", "complaint"), SPOILED)
def test_a_policy_complains_of_what_it_is_for(
    policy: str, spoils: Spoils, complaint: str, changed: Resources
) -> None:
    spoils(changed)
    assert any(re.search(complaint, each) for each in complaints(changed, policy))


def test_every_policy_can_complain() -> None:
    assert {policy for policy, _, _ in SPOILED} == set(POLICIES)
