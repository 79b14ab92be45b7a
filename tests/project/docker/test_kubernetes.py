"""Manifests: of the schema, under the strictest of the pod security standards, and closed to the network."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from tests.project.docker.images import DOCKER, KUBERNETES, STAGES, manifests, pod, run, tool
from umbel.simulations.commands.federate import federate

FOLDERS = ("server", "site")
APPLIED = ("server", "north", "south")
IMAGE = {"server": "server", "site": "client"}
VERSIONS = ("1.31", "1.37")  # that of the pod security standard, and the newest that the schemas have
# https://kubernetes.io/docs/concepts/security/pod-security-standards: kinds of volumes under `restricted`
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_are_of_the_schema(folder: str, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for resource in manifests(folder).values():
        validator.validate(resource, version, strict=True)
    wrong = manifests("server")["Service"]
    wrong["spec"]["prots"] = wrong["spec"].pop("ports")
    with pytest.raises(validator.ValidationError, match="prots"):
        validator.validate(wrong, version, strict=True)


@pytest.mark.parametrize("folder", APPLIED)
def test_kubectl_builds_them(folder: str) -> None:
    built = run(tool("kubectl"), "kustomize", KUBERNETES / folder)
    assert built.returncode == 0, built.stderr
    namespace = "umbel" if folder == "server" else f"umbel-{folder}"
    for resource in yaml.safe_load_all(built.stdout):
        metadata = resource["metadata"]
        assert (metadata["name"] if resource["kind"] == "Namespace" else metadata["namespace"]) == namespace


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_are_restricted(folder: str) -> None:
    labels = manifests(folder)["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    specification = pod(folder)
    user, _, group = STAGES[IMAGE[folder]].last("USER").partition(":")
    assert specification["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": int(user),
        "runAsGroup": int(group),
        "fsGroup": int(group),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert specification["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(specification)
    assert {kind for volume in specification["volumes"] for kind in volume if kind != "name"} <= VOLUMES
    for container in (*specification["initContainers"], *specification["containers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["image"] == f"umbel-{IMAGE[folder]}:cpu"
        assert "memory" in container["resources"]["limits"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_pods_start_and_ask_what_the_images_have(folder: str) -> None:
    [container] = pod(folder)["containers"]
    name, home = container["args"]
    assert "command" not in container, "the image's entry point stays"
    assert name == json.loads(STAGES[IMAGE[folder]].last("CMD"))[0]
    assert name in federate.commands
    probes = {key: probe["exec"]["command"] for key, probe in container.items() if key.endswith("Probe")}
    assert set(map(tuple, probes.values())) == {("umbel-health", home)}
    # A site's server may be away for a day: a new container would not bring it back.
    assert set(probes) == (
        {"startupProbe", "readinessProbe", "livenessProbe"} if folder == "server" else {"readinessProbe"}
    )
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(home.startswith(f"{path}/") for path in mounts)
    assert "/tmp" in mounts
    [cache] = container["env"]
    assert cache == {"name": "UMBEL_CACHE", "value": f"{home}/state/cache"}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes(folder)


def volumes(folder: str) -> set[str]:
    """Return the names of the volumes that a pod has."""
    resources = manifests(folder)
    claims = resources.get("StatefulSet", {}).get("spec", {}).get("volumeClaimTemplates", [])
    return {volume["name"] for volume in pod(folder)["volumes"]} | {claim["metadata"]["name"] for claim in claims}


def peers(rule: dict[str, Any]) -> list[tuple[str, int]]:
    return [(port["protocol"], port["port"]) for port in rule["ports"]]


def test_the_network_reaches_the_fleet_port_alone() -> None:
    resources = manifests("server")
    policy = resources["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [peers(rule) for rule in policy["ingress"]] == [[("TCP", 9092)]]
    assert policy["egress"] == []
    labels = resources["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    service = resources["Service"]["spec"]
    assert service["selector"] == labels == resources["StatefulSet"]["spec"]["selector"]["matchLabels"]
    assert [port["port"] for port in service["ports"]] == [9092]
    ports = pod("server")["containers"][0]["ports"]
    assert ports == [{"name": service["ports"][0]["targetPort"], "containerPort": 9092}]


def test_a_site_reaches_the_server_and_names_alone() -> None:
    policy = manifests("site")["NetworkPolicy"]["spec"]
    assert policy["podSelector"] == {}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["ingress"] == []
    to_server, to_names = policy["egress"]
    assert peers(to_server) == [("TCP", 9092)]
    [peer] = to_server["to"]
    labels = manifests("server")["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert peer["podSelector"]["matchLabels"] == labels
    assert peers(to_names) == [("UDP", 53), ("TCP", 53)]
    assert "Service" not in manifests("site")
    assert "ports" not in pod("site")["containers"][0]


def test_two_pods_never_have_one_key() -> None:
    server, site = manifests("server")["StatefulSet"]["spec"], manifests("site")["Deployment"]["spec"]
    assert (server["replicas"], site["replicas"]) == (1, 1)
    assert site["strategy"] == {"type": "Recreate"}


def test_what_the_readme_makes_is_what_the_pods_mount() -> None:
    text = (DOCKER / "README.md").read_text()
    for folder in FOLDERS:
        for volume in pod(folder)["volumes"]:
            if "secret" in volume:
                assert f"create secret generic {volume['secret']['secretName']} " in text
                assert volume["secret"]["defaultMode"] == 0o440, "its group's, which is the user's own"
            if "configMap" in volume:
                assert f"create configmap {volume['configMap']['name']} " in text
