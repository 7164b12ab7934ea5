"""`serve run` from start to Ctrl-C, with arguments and with a config file, in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import grpc
import httpx
import openai
import pytest
import trustme
import yaml
from tokenizers import Tokenizer

from cluster.engine import DEFAULT_TARGET
from cluster.transports.authentication import TlsFiles
from dflash_core.models.checkpoints import resolve_checkpoint
from protos import inference_pb2, inference_pb2_grpc
from tests.deployments.conftest import free_ports, serve_environment
from tests.tiny import make_tiny_pair
from tests.waiting import wait

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def _serve_run(log: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[bytes]]:
    """Runs the command, and after the body ends it as Ctrl-C does: it must end by itself, with nothing left behind."""
    environment = dict(os.environ) | serve_environment() | variables
    command = [sys.executable, "-m", "ray.serve.scripts", "run", *arguments]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell's background jobs ignore it, and so would what they start.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
        try:
            yield process
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(timeout=120) == 0, log.read_text(errors="replace")
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, url: str) -> None:
    deadline = time.monotonic() + 400
    while True:
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        try:
            if httpx.get(f"{url}/healthz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)


def _wait_for_line(log: Path, text: str) -> None:
    """Ray brings what its workers log to the terminal in its own time, and not once it is shut down."""
    deadline = time.monotonic() + 60
    while text not in (terminal := log.read_text(errors="replace")):
        assert time.monotonic() < deadline, terminal
        time.sleep(0.2)


def test_with_arguments(tmp_path: Path) -> None:
    pair = make_tiny_pair(tmp_path / "pair")
    http_port, grpc_port, data_port = free_ports(3)
    url, log = f"http://127.0.0.1:{http_port}", tmp_path / "log"
    arguments = [
        f"target={pair.target}",
        f"drafter={pair.drafter}",
        "tree_budget=32",
        f"http_port={http_port}",
        f"grpc_port={grpc_port}",
        f"data_plane_ports={data_port}-{data_port + 100}",
    ]
    with _serve_run(log, "deployments:app", *arguments) as process:
        _wait_until_ready(process, log, url)
        body = {"prompt": "def add(", "max_tokens": 16, "seed": 1}
        by_http = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["text"]
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            request = inference_pb2.GenerateRequest(text="def add(", max_tokens=16, seed=1)
            stub = inference_pb2_grpc.InferenceStub(channel)
            assert stub.Complete(request, timeout=60, wait_for_ready=True).text == by_http
        for owner in (f"target {pair.target}", f"drafter {pair.drafter}"):
            _wait_for_line(log, f"-- loaded {owner}: ")
            _wait_for_line(log, f"-- memory of {owner} on cpu:")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/healthz", timeout=5)


def test_with_keys_a_secret_and_certificates(tmp_path: Path) -> None:
    """Whoever has none of them is refused on every port of ours, and no log of Ray's or ours shows one."""
    pair = make_tiny_pair(tmp_path / "pair")
    http_port, grpc_port, data_port = free_ports(3)
    url, log = f"http://127.0.0.1:{http_port}", tmp_path / "log"
    key, secret = "key-0123456789abcdef", "secret-0123456789abcdef"
    tls = _certificates(tmp_path / "tls")
    arguments = [
        f"target={pair.target}",
        f"drafter={pair.drafter}",
        "tree_budget=8",
        f"http_port={http_port}",
        f"grpc_port={grpc_port}",
        f"data_plane_ports={data_port}-{data_port + 20}",
        "data_plane_host=127.0.0.1",
        f"security.tls_cert_file={tls.cert_file}",
        f"security.tls_key_file={tls.key_file}",
        f"security.tls_ca_file={tls.ca_file}",
        f"security.tls_server_name={tls.server_name}",
    ]
    # Ray's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray_folder:
        variables = {"DFLASH_API_KEYS": f"alice:{key}", "DFLASH_CLUSTER_SECRET": secret, "RAY_TMPDIR": ray_folder}
        with _serve_run(log, "deployments:app", *arguments, **variables) as process:
            _wait_until_ready(process, log, url)
            body = {"prompt": "def add(", "max_tokens": 16, "seed": 1}
            authorization = {"authorization": f"Bearer {key}"}
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 401
            answer = httpx.post(f"{url}/v1/completions", json=body, headers=authorization, timeout=60)
            assert answer.status_code == 200
            with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
                stub = inference_pb2_grpc.InferenceStub(channel)
                request = inference_pb2.GenerateRequest(text="def add(", max_tokens=16, seed=1)
                with pytest.raises(grpc.RpcError) as caught:
                    stub.Complete(request, timeout=60, wait_for_ready=True)
                assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
                told = stub.Complete(request, timeout=60, metadata=tuple(authorization.items()))
                assert told.text == answer.json()["choices"][0]["text"]
            codes = [_code_without_the_secret(port, tls) for port in range(data_port, data_port + 21)]
            assert codes.count(grpc.StatusCode.UNAUTHENTICATED) == 2, "a router and a drafter"
            assert set(codes) == {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE}
        logs = [path for path in Path(ray_folder).rglob("logs/**/*") if path.is_file()]
        assert any("serve" in path.parts for path in logs)
        for path in [log, *logs]:
            text = path.read_text(errors="replace")
            assert key not in text, path
            assert secret not in text, path


def _certificates(folder: Path) -> TlsFiles:
    folder.mkdir()
    authority = trustme.CA()
    certificate = authority.issue_cert("replicas.dflash")
    certificate.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    certificate.private_key_pem.write_to_path(folder / "key.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    return TlsFiles(folder / "cert.pem", folder / "key.pem", folder / "ca.pem", "replicas.dflash")


def _code_without_the_secret(port: int, tls: TlsFiles) -> grpc.StatusCode:
    with grpc.secure_channel(f"127.0.0.1:{port}", tls.channel_credentials(), options=tls.channel_options()) as channel:
        call = channel.unary_unary("/dflash.internal.v1.Router/Status").future(b"", timeout=30)
        code: grpc.StatusCode = call.code()
        return code


def test_the_embedded_pair_with_the_config_file(tmp_path: Path) -> None:
    """As shipped but for its ports: what every client gets is what `transformers` generates, in fewer rounds."""
    http_port, grpc_port, data_port = free_ports(3)
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = http_port
    config["grpc_options"]["port"] = grpc_port
    config["applications"][0]["args"]["data_plane_ports"] = f"{data_port}-{data_port + 100}"
    path, url, log = tmp_path / "config.yaml", f"http://127.0.0.1:{http_port}", tmp_path / "log"
    path.write_text(yaml.safe_dump(config))
    prompt = "class Stack:\n    def __init__(self"
    expected = _generated_by_transformers(prompt, 48)
    with _serve_run(log, str(path)) as process:
        _wait_until_ready(process, log, url)
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            (model,) = client.models.list()
            options = {"model": model.id, "prompt": prompt, "max_tokens": 48, "temperature": 0}

            def is_drafted() -> bool:
                """The application is ready before its drafter is."""
                answer = client.completions.create(**options)
                assert answer.choices[0].text == expected
                return bool(answer.model_extra["dflash"]["mean_acceptance_length"] > 2)

            wait(is_drafted, "drafts", timeout_s=60.0)
            assert (
                "".join(chunk.choices[0].text for chunk in client.completions.create(**options, stream=True))
                == expected
            )
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            request = inference_pb2.GenerateRequest(text=prompt, max_tokens=48, temperature=0.0)
            assert stub.Complete(request, timeout=60, wait_for_ready=True).text == expected
            *_, last = pieces = list(stub.Generate(request, timeout=60))
            assert "".join(piece.text for piece in pieces) == expected
            assert last.statistics.mean_acceptance_length > 2


def _generated_by_transformers(prompt: str, max_new_tokens: int) -> str:
    import torch
    from transformers import AutoModelForCausalLM

    folder = resolve_checkpoint(DEFAULT_TARGET)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.encode(prompt).ids
    with torch.inference_mode():
        output = model.generate(torch.tensor([ids]), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, len(ids) :].tolist())
