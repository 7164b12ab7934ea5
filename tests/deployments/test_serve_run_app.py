"""`serve run` from start to Ctrl-C, with arguments and with a config file, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
import yaml

from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import free_ports, serve_environment
from tests.tiny import TinyPair, make_tiny_pair

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    return make_tiny_pair(tmp_path_factory.mktemp("pair"))


@contextmanager
def _serve_run(log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command, and after the body ends it as Ctrl-C does: it must end by itself, with nothing left behind."""
    environment = dict(os.environ) | serve_environment()
    command = [sys.executable, "-m", "ray.serve.scripts", "run", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            yield process
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=120) == 0, log.read_text(errors="replace")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _answer(process: subprocess.Popen[bytes], log: Path, http_port: int, grpc_port: int) -> tuple[str, str]:
    """The same completion over HTTP and over gRPC, once a round can run."""
    url = f"http://127.0.0.1:{http_port}"
    deadline = time.monotonic() + 400
    while True:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    body = {"prompt": "def add(", "max_tokens": 16, "seed": 1}
    by_http = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
    with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
        request = inference_pb2.GenerateRequest(text="def add(", max_tokens=16, seed=1)
        by_grpc = inference_pb2_grpc.InferenceStub(channel).Complete(request, timeout=60, wait_for_ready=True).text
    return by_http, by_grpc


def test_with_arguments(tmp_path: Path, pair: TinyPair) -> None:
    http_port, grpc_port, data_port = free_ports(3)
    log = tmp_path / "log"
    arguments = [
        f"target={pair.target}",
        f"drafter={pair.drafter}",
        "tree_budget=32",
        f"http_port={http_port}",
        f"grpc_port={grpc_port}",
        f"data_plane_ports={data_port}-{data_port + 100}",
    ]
    with _serve_run(log, "deployments:app", *arguments) as process:
        by_http, by_grpc = _answer(process, log, http_port, grpc_port)
    assert by_http == by_grpc
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{http_port}/healthz", timeout=5)


def test_with_a_config_file(tmp_path: Path, pair: TinyPair) -> None:
    http_port, grpc_port, data_port = free_ports(3)
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = http_port
    config["grpc_options"]["port"] = grpc_port
    (application,) = config["applications"]
    application["args"]["target"]["model"] = str(pair.target)
    application["args"]["drafter"]["model"] = str(pair.drafter)
    application["args"]["data_plane_ports"] = f"{data_port}-{data_port + 100}"
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    log = tmp_path / "log"
    with _serve_run(log, str(path)) as process:
        by_http, by_grpc = _answer(process, log, http_port, grpc_port)
    assert by_http == by_grpc
