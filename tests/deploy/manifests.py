# SPDX-License-Identifier: Apache-2.0
"""What kubectl makes of the manifests, and what is to be found in it."""

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
K8S = ROOT / "deploy" / "k8s"
COMPONENTS = sorted(each.name for each in (K8S / "components").iterdir())
OVERLAYS = sorted(each.name for each in (K8S / "overlays").iterdir())
RENDERS_WITHIN_S = 60

Resource = dict[str, Any]
Resources = list[Resource]


def kubectl() -> str | None:
    """A kubectl of 1.27 or later, whose kustomize is the fifth."""
    found = shutil.which("kubectl")
    if found is None:
        return None
    said = _run(found, "version", "--client", "--output=yaml")
    kustomize = str(yaml.safe_load(said).get("kustomizeVersion", "v0"))
    return found if int(kustomize.lstrip("v").partition(".")[0]) >= 5 else None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RENDERS_WITHIN_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(directory: Path) -> Resources:
    """What `kubectl apply -k` would send."""
    program = kubectl()
    assert program is not None
    return list(yaml.safe_load_all(_run(program, "kustomize", str(directory))))


def rendered_together(
    directory: Path, resource: Path, components: Sequence[str], namespace: str | None = None
) -> Resources:
    """What a kustomization made in an empty `directory` gives of a base or an overlay and some components."""
    kustomization: Resource = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [os.path.relpath(resource, directory.resolve())],
        "components": [
            os.path.relpath(K8S / "components" / name, directory.resolve()) for name in components
        ],
    }
    if namespace is not None:
        kustomization["namespace"] = namespace
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return rendered(directory)


def of_kind(resources: Resources, *kinds: str) -> Iterator[Resource]:
    yield from (each for each in resources if each["kind"] in kinds)


def named(resources: Resources, kind: str, name: str) -> Resource:
    [found] = [each for each in of_kind(resources, kind) if each["metadata"]["name"] == name]
    return found


def shown(resource: Resource) -> str:
    return f"{resource['kind']} {resource['metadata']['name']}"


@dataclass(frozen=True)
class Pods:
    """The pods that one resource makes."""

    owner: Resource
    spec: Resource
    labels: dict[str, str]

    @property
    def name(self) -> str:
        return shown(self.owner)

    @property
    def component(self) -> str:
        return self.labels["app.kubernetes.io/component"]

    @property
    def containers(self) -> list[Resource]:
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]


def pods(resources: Resources) -> Iterator[Pods]:
    for owner in of_kind(resources, "Deployment", "StatefulSet", "Job", "DaemonSet"):
        template = owner["spec"]["template"]
        yield Pods(owner, template["spec"], template["metadata"]["labels"])


def is_ours(container: Resource) -> bool:
    """Whether fed-sophia runs in it, from whatever registry."""
    image: str = container["image"]
    return image.rpartition("/")[2].startswith("fed-sophia-")


def server_of(resources: Resources) -> Pods:
    [server] = [each for each in pods(resources) if each.component == "server"]
    return server


def environment(resources: Resources, container: Resource) -> dict[str, str | None]:
    """Its variables; None for what a Secret holds."""
    variables: dict[str, str | None] = {}
    for source in container.get("envFrom", []):
        variables |= named(resources, "ConfigMap", source["configMapRef"]["name"])["data"]
    for each in container.get("env", []):
        variables[each["name"]] = each.get("value")
    return variables


def selects(selector: Resource, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all."""
    wanted = selector.get("matchLabels", {}).items() <= labels.items()
    return wanted and all(
        {"In": labels.get(each["key"]) in each.get("values", []), "Exists": each["key"] in labels}[
            each["operator"]
        ]
        for each in selector.get("matchExpressions", [])
    )
