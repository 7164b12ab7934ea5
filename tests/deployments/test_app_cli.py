"""`dflash complete` against the running application, over both transports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.deployments.conftest import ServedApplication

pytestmark = [pytest.mark.cluster, pytest.mark.slow]


def _complete(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from deployments.cli import main; main()"
    command = [sys.executable, "-c", code, "complete", "def add(left", "--max-tokens", "16", "--stats", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("temperature", ["0", "0.9"])
def test_both_transports_write_the_same(served: ServedApplication, temperature: str) -> None:
    sampling = ("--temperature", temperature, "--seed", "5", "--tree-budget", "6")
    sampling += ("--priority", "-2", "--latency-class", "interactive")
    http = _complete("--server", served.url, *sampling)
    rpc = _complete("--transport", "grpc", "--server", served.grpc_target, *sampling)
    for result in (http, rpc):
        assert result.returncode == 0, result.stderr
        assert result.stderr.startswith("16 tokens in ")
        assert " tree nodes verified, first token after " in result.stderr
        assert result.stderr.rstrip().endswith(" prompt tokens were cached")
    assert http.stdout == rpc.stdout


def test_a_refusal_is_the_server_s_own_line(served: ServedApplication) -> None:
    http = _complete("--server", served.url, "--model", "other")
    rpc = _complete("--transport", "grpc", "--server", served.grpc_target, "--model", "other")
    for result, code in ((http, "(HTTP 404)"), (rpc, "(NOT_FOUND)")):
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert result.stderr.startswith("error: ")
        assert "other" in result.stderr
        assert result.stderr.rstrip().endswith(code)
