"""Loading in a replica: whose log it goes to, and how a failure is said."""

from __future__ import annotations

import logging

import pytest

from deployments.replica_start import start_model
from dflash_core.errors import InvalidSettings


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.getMessage()}")


@pytest.fixture
def serve_log() -> list[str]:
    """What Ray Serve's handlers get."""
    serve = logging.getLogger("ray.serve")
    handler = Lines()
    serve.handlers = [handler]
    serve.setLevel(logging.INFO)
    return handler.lines


def test_what_is_logged_while_a_model_loads_is_in_the_replicas_log(serve_log: list[str]) -> None:
    def load() -> int:
        logging.getLogger("dflash_core.runners.cache_memory").info("memory of x")
        logging.getLogger("dflash_core.runners.cache_memory").debug("details")
        return 3

    assert [start_model("target", load) for _ in range(2)] == [3, 3]
    assert serve_log == ["INFO memory of x"] * 2


def test_a_failure_with_a_name_is_one_line(serve_log: list[str]) -> None:
    def load() -> None:
        raise InvalidSettings("the cache holds 16 tokens")

    with pytest.raises(InvalidSettings, match="holds 16 tokens"):
        start_model("drafter", load)
    assert serve_log == ["ERROR drafter cannot start: the cache holds 16 tokens"]
