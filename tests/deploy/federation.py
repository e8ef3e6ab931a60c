# SPDX-License-Identifier: Apache-2.0
"""What we hold of manifests because of what our servers and workers are."""

from collections.abc import Iterator
from typing import Any

import typer.main
from pydantic import ValidationError

from fed_sophia.cli import app
from ps_service.settings import Settings
from tests.deploy.manifests import (
    Pods,
    Resource,
    Resources,
    environment,
    is_ours,
    of_kind,
    pods,
    server_of,
    shown,
)

SETTINGS = {f"FED_SOPHIA_{name.upper()}" for name in Settings.model_fields}
CONNECTIONS_OF_A_SERVER, CONNECTIONS_OF_POSTGRES = 11, 100
STOPS_WITHIN_S = 10.0
"""After the drain: bodies that pause are handed to the store, leases are given back."""


def _ours(resources: Resources) -> Iterator[tuple[Pods, Resource, list[str]]]:
    """Containers of fed-sophia, and their command lines."""
    for each in pods(resources):
        for container in each.containers:
            words = [*container.get("command", []), *container.get("args", [])]
            if is_ours(container):
                yield each, container, words


def options_and_variables(words: list[str]) -> tuple[set[str], set[str]]:
    """The options and the variables of a command line of ours."""
    command: Any = typer.main.get_command(app)
    command.load(words[1])
    for word in (each for each in words[1:] if not each.startswith("-")):
        command = command.commands[word]
    options = {option for parameter in command.params for option in parameter.opts}
    return options, {parameter.envvar for parameter in command.params if parameter.envvar}


def variables_exist(resources: Resources) -> Iterator[str]:
    for each, container, words in _ours(resources):
        options, variables = options_and_variables(words)
        known = variables | (SETTINGS if each.component in ("server", "migrate") else set())
        found = {name for name in environment(resources, container) if name.startswith("FED_SOPHIA_")}
        if found - known:
            yield f"{each.name}: nothing reads {found - known}"
        used = {word.partition("=")[0] for word in words if word.startswith("-")}
        if used - options:
            yield f"{each.name}: {words[1]} has no {used - options}"
        if each.spec.get("enableServiceLinks") is not False:
            yield f"{each.name}: Kubernetes adds variables to it"
    for service in of_kind(resources, "Service"):
        link = service["metadata"]["name"].upper().replace("-", "_") + "_PORT"
        if link in SETTINGS:
            yield f"{shown(service)}: gives other pods of the namespace {link}, which is a setting"


def settings_are_set(resources: Resources) -> Iterator[str]:
    server = server_of(resources)
    variables = environment(resources, server.containers[0])
    said = {
        name.removeprefix("FED_SOPHIA_").lower(): value
        for name, value in variables.items()
        if name.startswith("FED_SOPHIA_") and value is not None
    }
    try:
        settings = Settings.model_validate(said)
    except ValidationError as error:
        yield f"{server.name}: {error}"
        return
    if settings.host not in ("0.0.0.0", "::") or not settings.insecure:
        yield f"{server.name}: is not to be reached"
    if settings.port not in {port["containerPort"] for port in server.containers[0]["ports"]}:
        yield f"{server.name}: listens elsewhere"
    if str(settings.server_data_dir) not in {m["mountPath"] for m in server.containers[0]["volumeMounts"]}:
        yield f"{server.name}: its data directory is no volume"
    if not any("persistentVolumeClaim" in volume for volume in server.spec["volumes"]):
        if variables.get("FED_SOPHIA_DATABASE_URL", "") is not None:
            yield f"{server.name}: servers share no database, or its password is written down"
        if not settings.blobs_url:
            yield f"{server.name}: servers share no object store"
    elif server.owner["spec"].get("replicas") != 1 or server.owner["spec"]["strategy"]["type"] != "Recreate":
        yield f"{server.name}: two servers may come to use one data directory"
    if str(settings.server_operator_key_file) not in _files_of_secrets(server):
        yield f"{server.name}: its operator key is of no Secret that it alone can read"
    if any(of_kind(resources, "Ingress")) and not settings.trusted_proxies:
        yield f"{server.name}: takes all devices for the ingress"


def _files_of_secrets(of: Pods) -> set[str]:
    """Where a pod finds the key `key` of Secrets that others of its machine cannot read."""
    secrets = {
        volume["name"]
        for volume in of.spec["volumes"]
        if volume.get("secret", {}).get("defaultMode", 0o644) & 0o007 == 0 and "secret" in volume
    }
    return {
        f"{each['mountPath']}/key"
        for each in of.containers[0]["volumeMounts"]
        if each["name"] in secrets and each.get("readOnly")
    }


def servers_have_time_to_stop(resources: Resources) -> Iterator[str]:
    server = server_of(resources)
    container = server.containers[0]
    drain_s = float(environment(resources, container).get("FED_SOPHIA_DRAIN_S") or 10.0)
    before_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    if not before_s:
        yield f"{server.name}: refuses connections before proxies know that it leaves"
    if server.spec.get("terminationGracePeriodSeconds", 30) < before_s + drain_s + STOPS_WITHIN_S:
        yield f"{server.name}: is killed while it drains"


def servers_are_scaled(resources: Resources) -> Iterator[str]:
    owner = server_of(resources).owner
    for scaler in of_kind(resources, "HorizontalPodAutoscaler"):
        spec, target = scaler["spec"], scaler["spec"]["scaleTargetRef"]
        if (target["kind"], target["name"]) != (owner["kind"], owner["metadata"]["name"]):
            yield f"{shown(scaler)}: scales something else"
        if "replicas" in owner["spec"]:
            yield f"{shown(owner)}: says how many it is, and so does {shown(scaler)}"
        if spec["minReplicas"] < 2 or not any(of_kind(resources, "PodDisruptionBudget")):
            yield f"{shown(scaler)}: all servers may be gone at a time"
        surge = owner["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        if (spec["maxReplicas"] + surge) * CONNECTIONS_OF_A_SERVER > CONNECTIONS_OF_POSTGRES:
            yield f"{shown(scaler)}: a PostgreSQL does not grant so many connections"


def proxies_let_it_through(resources: Resources) -> Iterator[str]:
    nginx = "nginx.ingress.kubernetes.io"
    wait_s = float(
        environment(resources, server_of(resources).containers[0]).get("FED_SOPHIA_MAX_WAIT_S") or 600
    )
    for ingress in of_kind(resources, "Ingress"):
        told = ingress["metadata"]["annotations"]
        if told.get(f"{nginx}/proxy-body-size") != "0" or told.get("nginx.org/client-max-body-size") != "0":
            yield f"{shown(ingress)}: large bodies are refused"
        if {told.get(f"{nginx}/proxy-request-buffering"), told.get(f"{nginx}/proxy-buffering")} != {"off"}:
            yield f"{shown(ingress)}: bodies wait at the proxy"
        for name in ("proxy-read-timeout", "proxy-send-timeout"):
            for value in (told.get(f"{nginx}/{name}", "60"), told.get(f"nginx.org/{name}", "60s")):
                if float(value.rstrip("s")) <= wait_s:
                    yield f"{shown(ingress)}: {name} cuts off who waits for {wait_s} s"
        hosts = {rule.get("host") for rule in ingress["spec"]["rules"]}
        if hosts != {host for tls in ingress["spec"].get("tls", []) for host in tls["hosts"]}:
            yield f"{shown(ingress)}: a host without TLS"
