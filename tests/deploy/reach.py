# SPDX-License-Identifier: Apache-2.0
"""Who reaches whom, by the NetworkPolicies alone.

A connection needs one that lets it out, and one that lets it in.
"""

from collections.abc import Iterator
from typing import Any

from tests.deploy.manifests import Pods, Resources, of_kind, pods, selects

MAY_REACH = {
    ("worker", "server", "http"),
    ("server", "postgres", "postgres"),
    ("migrate", "postgres", "postgres"),
    ("server", "s3", "s3"),
}
"""Of our pods: from whom, to whom, at which port."""
MAY_COME_FROM = {("ingress-nginx", "server", "http"), ("monitoring", "server", "http")}
"""Of other namespaces: from which, to whom, at which port."""
MAY_GO_OUT_TO = {53, 443, 5432}
"""Ports beyond our pods: names, a managed object store, a managed PostgreSQL."""

Rule = dict[str, Any]


def _rules(resources: Resources, of: Pods, direction: str) -> Iterator[Rule]:
    for policy in of_kind(resources, "NetworkPolicy"):
        spec = policy["spec"]
        if direction in spec["policyTypes"] and selects(spec["podSelector"], of.labels):
            yield from spec.get(direction.lower(), [])


def _isolated(resources: Resources, of: Pods, direction: str) -> bool:
    return any(
        direction in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], of.labels)
        for policy in of_kind(resources, "NetworkPolicy")
    )


def _peers(rule: Rule) -> list[Rule]:
    found: list[Rule] = rule.get("from", rule.get("to", []))
    return found


def _lets(rule: Rule, other: Pods, port: Rule) -> bool:
    meant = (port["name"], port["containerPort"])
    return any(each["port"] in meant for each in rule.get("ports", [{"port": port["name"]}])) and any(
        "podSelector" in peer
        and "namespaceSelector" not in peer
        and selects(peer["podSelector"], other.labels)
        for peer in _peers(rule)
    )


def reached(resources: Resources) -> set[tuple[str, str, str]]:
    """(from, to, port) of all our pods that may connect to one another."""
    everyone = list(pods(resources))
    ports = [(to, port) for to in everyone for each in to.containers for port in each.get("ports", [])]
    return {
        (source.component, to.component, port["name"])
        for source in everyone
        for to, port in ports
        if any(_lets(rule, to, port) for rule in _rules(resources, source, "Egress"))
        and any(_lets(rule, source, port) for rule in _rules(resources, to, "Ingress"))
    }


def network_is_closed(resources: Resources) -> Iterator[str]:
    """Complains of pods that are not closed by default, and of whatever is open and not meant to be."""
    everyone = list(pods(resources))
    there = {each.component for each in everyone}
    for each in everyone:
        for direction in ("Ingress", "Egress"):
            if not _isolated(resources, each, direction):
                yield f"{each.name}: no policy closes it for {direction}"
            for rule in _rules(resources, each, direction):
                if not _peers(rule) or not rule.get("ports"):
                    yield f"{each.name}: {direction} is open to everybody, or at every port"
        yield from _outside(resources, each)
    meant = {(source, to, port) for source, to, port in MAY_REACH if {source, to} <= there}
    for source, to, port in reached(resources) ^ meant:
        yield f"{source} to {to} at {port}: is open and not meant to be, or the other way round"


def _outside(resources: Resources, each: Pods) -> Iterator[str]:
    for rule in _rules(resources, each, "Ingress"):
        for peer in _peers(rule):
            if "ipBlock" in peer:
                yield f"{each.name}: open to addresses, {peer['ipBlock']['cidr']}"
            if "namespaceSelector" in peer:
                place = peer["namespaceSelector"].get("matchLabels", {}).get("kubernetes.io/metadata.name")
                for port in rule["ports"]:
                    if (place, each.component, port["port"]) not in MAY_COME_FROM:
                        yield f"{each.name}: open to namespace {place} at {port['port']}"
    for rule in _rules(resources, each, "Egress"):
        beyond = [peer for peer in _peers(rule) if "ipBlock" in peer or "namespaceSelector" in peer]
        open_ports = {port["port"] for port in rule.get("ports", [])} if beyond else set()
        if open_ports - MAY_GO_OUT_TO:
            yield f"{each.name}: goes out to {open_ports - MAY_GO_OUT_TO}"
        if open_ports - {53} and each.component not in ("server", "migrate"):
            yield f"{each.name}: goes out of the cluster at {open_ports}"
