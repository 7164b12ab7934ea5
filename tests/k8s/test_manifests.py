"""The manifests against the schemas that will read them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from ray.serve.schema import ServeDeploySchema

from deployments.settings import parse_settings

K8S = Path(__file__).parents[2] / "k8s"


def _load(name: str) -> dict[str, Any]:
    manifest: dict[str, Any] = yaml.safe_load((K8S / name).read_text())
    return manifest


def _closed(schema: Any) -> Any:
    """The schema with unknown keys forbidden wherever it names the known ones."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not open_ended:
        closed["additionalProperties"] = False
    return closed


def test_the_ray_service_fits_the_operators_schema() -> None:
    service = _load("rayservice.yaml")
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    if crd_file := os.environ.get("DFLASH_KUBERAY_CRD"):
        crd = yaml.safe_load(Path(crd_file).read_text())
        (version,) = [v for v in crd["spec"]["versions"] if v["name"] == "v1"]
        properties = _closed(version["schema"]["openAPIV3Schema"]["properties"]["spec"])
        jsonschema.validate(service["spec"], properties)


def test_the_serve_config_is_valid_and_so_are_its_settings() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(_load("rayservice.yaml")["spec"]["serveConfigV2"]))
    (application,) = config.applications
    assert application.import_path == "deployments:app"
    settings = parse_settings(application.args)
    assert (settings.target.fewest_replicas, settings.target.most_replicas) == (2, 4)


def test_every_pool_fits_its_worker_group() -> None:
    spec = _load("rayservice.yaml")["spec"]
    settings = parse_settings(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"])
    groups = spec["rayClusterConfig"]["workerGroupSpecs"]
    for pool in (settings.target, settings.drafter):
        (group,) = [group for group in groups if pool.labels.items() <= group["labels"].items()]
        assert pool.labels, "or it would go anywhere"
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
        assert (pool.num_gpus or 0) * pool.most_replicas <= gpus * group["maxReplicas"]
    assert spec["rayClusterConfig"]["enableInTreeAutoscaling"], "or an automatic pool gets no nodes"


def test_grpc_is_open_on_the_head_and_in_the_service() -> None:
    head = _load("rayservice.yaml")["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in head["ports"]}
    assert ports["serve"] == 8000, "KubeRay's readiness probe asks there"
    (port,) = _load("service.yaml")["spec"]["ports"]
    assert (port["targetPort"], port["port"]) == ("serve-grpc", ports["serve-grpc"])


def test_the_image_copies_every_package() -> None:
    dockerfile = (K8S / "Dockerfile").read_text()
    for package in ("dflash_core", "cluster", "deployments", "protos"):
        assert f"COPY {package} {package}" in dockerfile


def test_only_http_and_grpc_are_open_to_everybody() -> None:
    policy = _load("network-policy.yaml")["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    service = _load("service.yaml")["spec"]["selector"]
    assert policy["podSelector"]["matchLabels"].items() <= service.items(), "the policy holds for the service's pods"
    (everybody,) = [rule for rule in policy["ingress"] if "from" not in rule]
    assert {entry["port"] for entry in everybody["ports"]} == {8000, 9000}


def test_ray_wants_a_token_and_clients_a_key() -> None:
    spec = _load("rayservice.yaml")["spec"]
    assert spec["rayClusterConfig"]["authOptions"] == {"mode": "token"}
    settings = parse_settings(yaml.safe_load(spec["serveConfigV2"])["applications"][0]["args"])
    head = spec["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "api-keys"]
    (volume,) = [v for v in head["volumes"] if v["name"] == "api-keys"]
    assert settings.security.api_key_file is not None
    assert str(settings.security.api_key_file.parent) == mount["mountPath"]
    assert volume["secret"]["secretName"] in (K8S / "README.md").read_text()
