"""The files of ``configs/clusters/`` start what they say.

Held against Ray's own schema and code, a stand-in for EC2, and the names in KubeRay's API reference.
"""

from __future__ import annotations

import copy
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray
import yaml
from moto import mock_aws
from ray.autoscaler._private import providers
from ray.autoscaler._private.command_runner import DockerCommandRunner
from ray.autoscaler._private.docker import docker_start_cmds
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs.config.config import JobConfig, config_from
from jobs.submit import ENVIRONMENT

ROOT = Path(__file__).parents[2]
CLUSTERS = ROOT / "configs/clusters"
# Of KubeRay's API reference, ray.io/v1: what the file may have at each place.
FIELDS = {
    "RayJobSpec": "entrypoint backoffLimit submissionMode runtimeEnvYAML shutdownAfterJobFinishes "
    "ttlSecondsAfterFinished rayClusterSpec",
    "RayClusterSpec": "rayVersion enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs",
    "AutoscalerOptions": "idleTimeoutSeconds",
    "HeadGroupSpec": "rayStartParams template",
    "WorkerGroupSpec": "groupName replicas minReplicas maxReplicas rayStartParams template",
}


# --- AWS --------------------------------------------------------------------------------------------------------------


@pytest.fixture(name="written")
def _written() -> dict[str, Any]:
    return yaml.safe_load((CLUSTERS / "aws.yaml").read_text())


@pytest.fixture(name="cloud")
def _cloud(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray keeps the key that it makes in ~/.ssh
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield


def test_ray_refuses_the_cluster_or_lets_a_misspelt_key_pass(written: dict[str, Any]) -> None:
    schema = json.loads((Path(ray.__file__).parent / "autoscaler/ray-schema.json").read_text())
    jsonschema.validate(written, schema)
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        jsonschema.validate({**written, "idle_timeout": 5}, schema)


def test_machines_run_what_another_example_wants(written: dict[str, Any]) -> None:
    prepared = prepare_config(copy.deepcopy(written))
    validate_config(prepared)
    commands = {name: each for name, each in prepared.items() if name.endswith("_commands") and each}
    assert commands == {name: written[name] for name in ("head_start_ray_commands", "worker_start_ray_commands")}


@pytest.fixture(name="machines")
def _machines(written: dict[str, Any], cloud: None) -> dict[str, dict[str, Any]]:
    """What EC2 says of a machine of each kind, started by Ray's own code."""
    prepared = prepare_config(copy.deepcopy(written))
    region, kinds = prepared["provider"]["region"], prepared["available_node_types"]
    ec2 = boto3.client("ec2", region_name=region)
    profiles = boto3.client("iam", region_name=region)
    for kind in kinds.values():
        profiles.create_instance_profile(InstanceProfileName=kind["node_config"]["IamInstanceProfile"]["Name"])
    prepared = providers._get_node_provider_cls(prepared["provider"]).bootstrap_config(prepared)
    provider = providers._get_node_provider(prepared["provider"], prepared["cluster_name"])
    for name, kind in prepared["available_node_types"].items():
        provider.create_node(kind["node_config"], {"ray-user-node-type": name}, 1)
    found = [each for reservation in ec2.describe_instances()["Reservations"] for each in reservation["Instances"]]
    return {tag["Value"]: each for each in found for tag in each["Tags"] if tag["Key"] == "ray-user-node-type"}


def test_amazon_refuses_a_machine_or_sells_the_head_on_the_market(
    written: dict[str, Any], machines: dict[str, dict[str, Any]]
) -> None:
    assert machines.keys() == written["available_node_types"].keys()
    assert "InstanceLifecycle" not in machines["head"]
    assert machines["gpu"]["InstanceLifecycle"] == "spot"
    assert machines["gpu"]["IamInstanceProfile"]["Arn"].endswith("/s3gen-worker")


class _Host:
    """A machine with Docker and NVIDIA's container toolkit, as it answers Ray's launcher."""

    def run(self, command: str, **settings: Any) -> bytes:
        runtimes = b"map[io.containerd.runc.v2:{runc} nvidia:{nvidia-container-runtime} runc:{runc}]"
        return runtimes if ".Runtimes" in command else b"16000000 kB" if "meminfo" in command else b"[]"


def _docker_command(prepared: dict[str, Any], kind: str) -> str:
    """By which Ray's own code starts the container of a machine."""
    docker = prepared["docker"]
    own = prepared["available_node_types"][kind].get("docker", {})
    options = [
        *docker.get("run_options", []),
        *docker.get("worker_run_options", []),
        *own.get("worker_run_options", []),
    ]
    runner = DockerCommandRunner.__new__(DockerCommandRunner)
    vars(runner).update(docker_config=docker, docker_cmd="docker", ssh_command_runner=_Host(), initialized=False)
    options = runner._configure_runtime(options)
    name = docker["container_name"]
    return str(docker_start_cmds("ubuntu", docker["image"], {}, name, options, "s3gen", "/home/s3gen", "docker"))


def test_machines_with_gpus_are_paid_for_whose_containers_see_none(written: dict[str, Any]) -> None:
    """NVIDIA's runtime gives devices to containers that have this variable, and to no others."""
    command = _docker_command(prepare_config(copy.deepcopy(written)), "gpu")
    assert "--runtime=nvidia" in command
    assert "--gpus" not in command, "Docker sets the variable by itself then"
    image = re.findall(r"^ENV (.*)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    settings = dict(pair.split("=", 1) for line in image for pair in shlex.split(line))
    assert settings["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert {"compute", "utility"} <= set(settings["NVIDIA_DRIVER_CAPABILITIES"].split(","))


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """The documents of the file."""

    settings: dict[str, Any]  # the ConfigMap
    job: dict[str, Any]  # the RayJob

    @property
    def cluster(self) -> dict[str, Any]:
        return self.job["spec"]["rayClusterSpec"]

    @property
    def head(self) -> dict[str, Any]:
        return self.cluster["headGroupSpec"]["template"]["spec"]

    @property
    def group(self) -> dict[str, Any]:
        (group,) = self.cluster["workerGroupSpecs"]
        return group

    @property
    def config(self) -> JobConfig:
        return config_from(yaml.safe_load(self.settings["data"]["job.yaml"]))


@pytest.fixture(name="order")
def _order() -> Order:
    settings, job = yaml.safe_load_all((CLUSTERS / "kubernetes.yaml").read_text())
    return Order(settings, job)


def test_operator_refuses_a_field_that_it_does_not_know(order: Order) -> None:
    assert (order.job["apiVersion"], order.job["kind"]) == ("ray.io/v1", "RayJob")
    parts = {
        "RayJobSpec": order.job["spec"],
        "RayClusterSpec": order.cluster,
        "AutoscalerOptions": order.cluster["autoscalerOptions"],
        "HeadGroupSpec": order.cluster["headGroupSpec"],
        "WorkerGroupSpec": order.group,
    }
    assert not {f"{name}.{field}" for name, part in parts.items() for field in part.keys() - FIELDS[name].split()}


def test_job_is_not_where_the_pod_looks_for_it(order: Order) -> None:
    (container,) = order.head["containers"]
    (mount,), (volume,) = container["volumeMounts"], order.head["volumes"]
    assert volume == {"name": mount["name"], "configMap": {"name": order.settings["metadata"]["name"]}}
    (key,) = order.settings["data"]
    assert f" {mount['mountPath']}/{key} " in order.job["spec"]["entrypoint"]


@pytest.mark.parametrize(("code", "again"), [(0, False), (1, True), (2, True), (3, False)])
def test_pods_are_started_again_for_a_job_that_is_finished(
    code: int, again: bool, order: Order, tmp_path: Path
) -> None:
    command = tmp_path / "s3gen"
    command.write_text(f"#!/bin/sh\necho $*\nexit {code}\n")
    command.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    # As Ray's job API starts it.
    done = subprocess.run(
        order.job["spec"]["entrypoint"], shell=True, env=environment, executable="/bin/bash", capture_output=True
    )
    assert (done.returncode != 0) is again
    assert done.stdout == b"synth /etc/s3gen/job.yaml\n"


def test_pods_wait_for_gpus_that_never_come(order: Order) -> None:
    (container,) = order.group["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    assert limits == container["resources"]["requests"]
    assert order.config.workers == order.group["maxReplicas"] * int(limits["nvidia.com/gpu"])
    assert order.config.ray_address == "auto"
    assert order.group["minReplicas"] >= 1, "a job with engine.device=cuda is refused where there is no GPU"


def test_pods_have_another_ray_than_the_operator_is_told(order: Order) -> None:
    assert f"ray=={order.cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    pods = [order.head, order.group["template"]["spec"]]
    assert len({container["image"] for pod in pods for container in pod["containers"]}) == 1


def test_stopped_job_is_killed_before_it_could_commit(order: Order) -> None:
    assert yaml.safe_load(order.job["spec"]["runtimeEnvYAML"]) == {"env_vars": ENVIRONMENT}


def test_credentials_are_in_a_file_or_in_a_secret_that_nobody_makes(order: Order) -> None:
    text = (CLUSTERS / "kubernetes.yaml").read_text()
    (source,) = order.head["containers"][0]["envFrom"]
    assert f"create secret generic {source['secretRef']['name']} " in text
    assert not order.config.storage_options
    for line in text.splitlines():
        assert "AWS_" not in line or line.startswith("#") or line.strip().startswith("#"), line
