# SPDX-License-Identifier: Apache-2.0
"""What we hold of any manifest, whatever runs in its pods.

A policy takes what was rendered, and complains in sentences.
"""

import re
import tomllib
from collections.abc import Iterator

from tests.deploy.manifests import ROOT, Resources, is_ours, of_kind, pods, selects, shown

VERSION: str = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def pods_are_confined(resources: Resources) -> Iterator[str]:
    for each in pods(resources):
        context = each.spec.get("securityContext", {})
        if context.get("runAsNonRoot") is not True or not context.get("runAsUser"):
            yield f"{each.name}: may run as root"
        if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{each.name}: any system call is allowed"
        if each.spec.get("automountServiceAccountToken") is not False:
            yield f"{each.name}: has a token of the Kubernetes API"
        if any(each.spec.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
            yield f"{each.name}: shares its node's network or processes"
        if any("hostPath" in volume for volume in each.spec.get("volumes", [])):
            yield f"{each.name}: sees its node's files"
        for container in each.containers:
            own = container.get("securityContext", {})
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{each.name}: its image can be written to"
            if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
                yield f"{each.name}: may become more than it is"
            if own.get("capabilities") != {"drop": ["ALL"]}:
                yield f"{each.name}: has capabilities"
            if {"runAsUser", "runAsNonRoot", "seccompProfile"} & set(own):
                yield f"{each.name}: a container has a user or profile of its own"


def resources_are_bounded(resources: Resources) -> Iterator[str]:
    for each in pods(resources):
        for container in each.containers:
            for bound in ("requests", "limits"):
                if not {"cpu", "memory"} <= set(container.get("resources", {}).get(bound, {})):
                    yield f"{each.name}: {container['name']} has no {bound} of cpu and memory"
        for volume in each.spec.get("volumes", []):
            if "emptyDir" in volume and "sizeLimit" not in volume["emptyDir"]:
                yield f"{each.name}: volume {volume['name']} may fill its node"


def images_are_pinned(resources: Resources) -> Iterator[str]:
    for each in pods(resources):
        for container in each.containers:
            image: str = container["image"]
            _, colon, tag = image.rpartition("/")[2].partition(":")
            if "@sha256:" not in image and (not colon or not re.search(r"\d", tag) or tag == "latest"):
                yield f"{each.name}: {image} is no version"
            if is_ours(container) and tag != VERSION:
                yield f"{each.name}: {image} is not {VERSION}"


def what_serves_is_probed(resources: Resources) -> Iterator[str]:
    for each in pods(resources):
        for container in each.containers:
            if not container.get("ports"):
                continue
            probes = [container.get(f"{kind}Probe") for kind in ("startup", "liveness", "readiness")]
            if None in probes:
                yield f"{each.name}: {container['name']} lacks a probe"
                continue
            asked = [{k: probe.get(k) for k in ("httpGet", "tcpSocket", "exec")} for probe in probes if probe]
            if asked[1] == asked[2]:
                yield f"{each.name}: to be alive means no other thing than to be ready"


def ports_are_named(resources: Resources) -> Iterator[str]:
    for each in pods(resources):
        for container in each.containers:
            known = {port.get("name") for port in container.get("ports", [])}
            if None in known:
                yield f"{each.name}: a port without a name"
            for kind in ("startup", "liveness", "readiness"):
                probe = container.get(f"{kind}Probe", {})
                port = probe.get("httpGet", probe.get("tcpSocket", {})).get("port")
                if port is not None and port not in known:
                    yield f"{each.name}: the {kind} probe asks at {port}"
    services = {each["metadata"]["name"]: each["spec"] for each in of_kind(resources, "Service")}
    for name, spec in services.items():
        offered = {
            port.get("name")
            for each in pods(resources)
            if selects({"matchLabels": spec["selector"]}, each.labels)
            for container in each.containers
            for port in container.get("ports", [])
        }
        for port in spec.get("ports", []):
            if "name" not in port or port["targetPort"] not in offered:
                yield f"Service {name}: port {port} leads nowhere, or has no name"
    for ingress in of_kind(resources, "Ingress"):
        for rule in ingress["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                to = path["backend"]["service"]
                if to["port"].get("name") not in {
                    port["name"] for port in services.get(to["name"], {}).get("ports", [])
                }:
                    yield f"{shown(ingress)}: {to} is no port of a Service"


def selectors_match(resources: Resources) -> Iterator[str]:
    everyone = list(pods(resources))
    for each in everyone:
        selector = each.owner["spec"].get("selector")
        if selector is not None and not selects(selector, each.labels):
            yield f"{each.name}: does not find its own pods"
        if selector is not None and [other.name for other in everyone if selects(selector, other.labels)] != [
            each.name
        ]:
            yield f"{each.name}: takes others' pods for its own"
        for spread in each.spec.get("topologySpreadConstraints", []):
            if not selects(spread["labelSelector"], each.labels):
                yield f"{each.name}: spreads others' pods"
    chosen = [(each, {"matchLabels": each["spec"]["selector"]}) for each in of_kind(resources, "Service")]
    chosen += [(each, each["spec"]["selector"]) for each in of_kind(resources, "PodDisruptionBudget")]
    chosen += [(each, each["spec"]["selector"]) for each in of_kind(resources, "PodMonitor")]
    for resource, selector in chosen:
        if len([each for each in everyone if selects(selector, each.labels)]) != 1:
            yield f"{shown(resource)}: is for the pods of none, or of several"


def nothing_secret_is_written(resources: Resources) -> Iterator[str]:
    secret = re.compile(r"(PASSWORD|SECRET|TOKEN|_KEY|DATABASE_URL)(?!\w*_FILE$)")
    for resource in resources:
        if resource["kind"] == "Secret":
            yield f"{shown(resource)}: is written down"
        for name, value in resource.get("data", {}).items():
            if secret.search(name) and value:
                yield f"{shown(resource)}: {name} is written down"
    for each in pods(resources):
        for container in each.containers:
            for variable in container.get("env", []):
                if secret.search(variable["name"]) and variable.get("value"):
                    yield f"{each.name}: {variable['name']} is written down"
