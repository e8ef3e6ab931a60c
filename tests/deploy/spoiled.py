# SPDX-License-Identifier: Apache-2.0
"""Menu: manifests as they are not to be. Each is (policy, what spoils them, what the policy says then)."""

from collections.abc import Callable
from typing import Any

from tests.deploy.manifests import Resource, Resources, named, of_kind

Spoils = Callable[[Resources], object]
OPERATOR_KEY_FILE = "FED_SOPHIA_SERVER_OPERATOR_KEY_FILE"


def _pod(resources: Resources, kind: str = "Deployment", name: str = "fed-sophia-server") -> Resource:
    spec: Resource = named(resources, kind, name)["spec"]["template"]["spec"]
    return spec


def _container(resources: Resources, name: str = "fed-sophia-server") -> Any:
    return _pod(resources, name=name)["containers"][0]


def _variable(resources: Resources, name: str) -> Any:
    [found] = [each for each in _container(resources)["env"] if each["name"] == name]
    return found


def _volume(resources: Resources, name: str) -> Any:
    [found] = [each for each in _pod(resources)["volumes"] if each["name"] == name]
    return found


def _security(resources: Resources) -> Any:
    return _container(resources)["securityContext"]


def _settings(resources: Resources) -> dict[str, str]:
    [settings] = of_kind(resources, "ConfigMap")
    data: dict[str, str] = settings["data"]
    return data


def _spec(resources: Resources, kind: str, name: str = "fed-sophia-server") -> Any:
    return named(resources, kind, name)["spec"]


def _ingress_rule(resources: Resources, policy: str) -> Any:
    return _spec(resources, "NetworkPolicy", policy)["ingress"][0]


def _told(resources: Resources, name: str) -> None:
    """Do not tell ingress-nginx."""
    annotations = named(resources, "Ingress", "fed-sophia-server")["metadata"]["annotations"]
    del annotations[f"nginx.ingress.kubernetes.io/{name}"]


def _without(resources: Resources, policy: str) -> None:
    resources.remove(named(resources, "NetworkPolicy", policy))


def _postgres_for_all(resources: Resources) -> None:
    _ingress_rule(resources, "fed-sophia-postgres")["from"] = [{"podSelector": {}}]
    _spec(resources, "NetworkPolicy", "fed-sophia-to-postgres")["podSelector"] = {}


def _sees_its_node(resources: Resources) -> None:
    _pod(resources)["volumes"].append({"name": "node", "hostPath": {"path": "/"}})


def _takes_others(resources: Resources) -> None:
    selector = _spec(resources, "Deployment", "fed-sophia-workers-cpu")["selector"]
    del selector["matchLabels"]["app.kubernetes.io/instance"]


OF_ANY_POD: list[tuple[str, Spoils, str]] = [
    ("pods_are_confined", lambda them: _pod(them)["securityContext"].pop("runAsUser"), "root"),
    ("pods_are_confined", lambda them: _pod(them)["securityContext"].pop("seccompProfile"), "system call"),
    ("pods_are_confined", lambda them: _pod(them).pop("automountServiceAccountToken"), "token"),
    ("pods_are_confined", lambda them: _pod(them).update(hostNetwork=True), "node's network"),
    ("pods_are_confined", _sees_its_node, "node's files"),
    ("pods_are_confined", lambda them: _security(them).pop("readOnlyRootFilesystem"), "written to"),
    ("pods_are_confined", lambda them: _security(them).update(capabilities={}), "capabilities"),
    ("pods_are_confined", lambda them: _security(them).update(privileged=True), "more than it is"),
    ("pods_are_confined", lambda them: _security(them).update(runAsUser=0), "of its own"),
    (
        "resources_are_bounded",
        lambda them: _container(them)["resources"]["limits"].pop("memory"),
        "no limits",
    ),
    ("resources_are_bounded", lambda them: _volume(them, "tmp").update(emptyDir={}), "fill its node"),
    ("images_are_pinned", lambda them: _container(them).update(image="postgres:latest"), "no version"),
    ("images_are_pinned", lambda them: _container(them).update(image="registry:5000/postgres"), "no version"),
    ("images_are_pinned", lambda them: _container(them).update(image="fed-sophia-server:0.0.9"), "is not"),
    ("what_serves_is_probed", lambda them: _container(them).pop("startupProbe"), "lacks a probe"),
    (
        "what_serves_is_probed",
        lambda them: _container(them)["livenessProbe"]["httpGet"].update(path="/readyz"),
        "no other thing",
    ),
    ("ports_are_named", lambda them: _container(them)["ports"][0].pop("name"), "without a name"),
    ("ports_are_named", lambda them: _spec(them, "Service")["ports"][0].update(targetPort=80), "nowhere"),
    (
        "ports_are_named",
        lambda them: _container(them)["livenessProbe"]["httpGet"].update(port="web"),
        "asks at web",
    ),
    ("selectors_match", lambda them: _spec(them, "Service")["selector"].update(app="x"), "none"),
    ("selectors_match", lambda them: _spec(them, "PodDisruptionBudget").update(selector={}), "several"),
    ("selectors_match", _takes_others, "others' pods"),
    (
        "nothing_secret_is_written",
        lambda them: them.append({"kind": "Secret", "metadata": {"name": "x"}}),
        "written down",
    ),
    (
        "nothing_secret_is_written",
        lambda them: _settings(them).update(FED_SOPHIA_DATABASE_URL="postgresql://a:b@c/d"),
        "written down",
    ),
    (
        "nothing_secret_is_written",
        lambda them: _variable(them, "FED_SOPHIA_DATABASE_URL").update(value="postgresql://a:b@c/d"),
        "written down",
    ),
]

OF_OURS: list[tuple[str, Spoils, str]] = [
    ("variables_exist", lambda them: _settings(them).update(FED_SOPHIA_TRUSTED_PROXY="::1"), "nothing reads"),
    (
        "variables_exist",
        lambda them: _container(them, "fed-sophia-workers-cpu")["args"].append("--gpu=1"),
        "has no",
    ),
    ("variables_exist", lambda them: _pod(them).pop("enableServiceLinks"), "adds variables"),
    (
        "variables_exist",
        lambda them: named(them, "Service", "fed-sophia-server")["metadata"].update(name="fed-sophia"),
        "FED_SOPHIA_PORT",
    ),
    ("settings_are_set", lambda them: _settings(them).pop("FED_SOPHIA_HOST"), "reached"),
    ("settings_are_set", lambda them: _settings(them).update(FED_SOPHIA_PORT="http"), "validation error"),
    ("settings_are_set", lambda them: _settings(them).update(FED_SOPHIA_PORT="9000"), "elsewhere"),
    ("settings_are_set", lambda them: _settings(them).pop("FED_SOPHIA_BLOBS_URL"), "object store"),
    ("settings_are_set", lambda them: _container(them).pop("env"), "no database"),
    ("settings_are_set", lambda them: _settings(them).pop("FED_SOPHIA_TRUSTED_PROXIES"), "ingress"),
    ("settings_are_set", lambda them: _settings(them).pop("FED_SOPHIA_SERVER_DATA_DIR"), "no volume"),
    (
        "settings_are_set",
        lambda them: _variable(them, OPERATOR_KEY_FILE).update(value="/tmp/key"),
        "no Secret",
    ),
    (
        "settings_are_set",
        lambda them: _volume(them, "operator-key")["secret"].pop("defaultMode"),
        "no Secret",
    ),
    (
        "settings_are_set",
        lambda them: _volume(them, "data").update(persistentVolumeClaim={"claimName": "data"}),
        "two servers",
    ),
    ("servers_have_time_to_stop", lambda them: _settings(them).update(FED_SOPHIA_DRAIN_S="46"), "drains"),
    ("servers_have_time_to_stop", lambda them: _container(them).pop("lifecycle"), "refuses connections"),
    (
        "servers_are_scaled",
        lambda them: _spec(them, "HorizontalPodAutoscaler").update(maxReplicas=9),
        "connections",
    ),
    ("servers_are_scaled", lambda them: _spec(them, "HorizontalPodAutoscaler").update(minReplicas=1), "gone"),
    ("servers_are_scaled", lambda them: _spec(them, "Deployment").update(replicas=2), "how many"),
    (
        "servers_are_scaled",
        lambda them: named(them, "Deployment", "fed-sophia-server")["metadata"].update(name="other"),
        "something else",
    ),
    ("proxies_let_it_through", lambda them: _told(them, "proxy-body-size"), "large bodies"),
    ("proxies_let_it_through", lambda them: _told(them, "proxy-request-buffering"), "wait at"),
    ("proxies_let_it_through", lambda them: _told(them, "proxy-read-timeout"), "cuts off"),
    ("proxies_let_it_through", lambda them: _spec(them, "Ingress").pop("tls"), "without TLS"),
]

OF_THE_NETWORK: list[tuple[str, Spoils, str]] = [
    ("network_is_closed", lambda them: _without(them, "fed-sophia-closed"), "no policy closes"),
    ("network_is_closed", lambda them: _without(them, "fed-sophia-to-s3"), "server to s3"),
    ("network_is_closed", lambda them: _without(them, "fed-sophia-postgres"), "server to postgres"),
    (
        "network_is_closed",
        lambda them: _ingress_rule(them, "fed-sophia-postgres").pop("from"),
        "everybody",
    ),
    ("network_is_closed", _postgres_for_all, "worker to postgres"),
    (
        "network_is_closed",
        lambda them: _ingress_rule(them, "fed-sophia-server-from-monitoring")["from"][0].update(
            namespaceSelector={}
        ),
        "namespace None",
    ),
    (
        "network_is_closed",
        lambda them: _spec(them, "NetworkPolicy", "fed-sophia-to-stores-elsewhere").update(podSelector={}),
        "goes out of the cluster",
    ),
]

SPOILED = OF_ANY_POD + OF_OURS + OF_THE_NETWORK
