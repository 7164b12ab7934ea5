"""What is seen of a model's loading."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from dflash_core.models import load_progress as module
from dflash_core.models.load_progress import load_progress
from dflash_core.units import bytes_text

GIB = 1 << 30


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_a_terminal_there_are_few_lines(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dflash_core")
    with load_progress("target some/model", 8 * GIB) as advance:
        for _ in range(8):
            clock.now += 4
            advance(GIB)
    assert caplog.messages == [
        "loading target some/model: 8.00 GiB",
        "loading target some/model: 3.00 GiB of 8.00 GiB after 12 s",
        "loading target some/model: 6.00 GiB of 8.00 GiB after 24 s",
        "loaded target some/model: 8.00 GiB in 32.0 s",
    ]


def test_nothing_is_printed_unless_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    with load_progress("drafter d", GIB) as advance:
        advance(GIB)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("size", "has_bar"), [(GIB, True), (module.BAR_FROM_BYTES - 1, False)])
def test_a_terminal_gets_a_bar_for_what_takes_time(
    size: int, has_bar: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "dflash_core")
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=120))
    with load_progress("target t", size) as advance:
        advance(size)
    assert ("loading target t" in screen.getvalue()) == has_bar
    if has_bar:
        assert "1.1/1.1 GB" not in screen.getvalue()
        assert "1.0/1.0 GiB" in screen.getvalue()
    assert len(caplog.messages) == 2


def test_a_failure_is_not_called_loaded(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dflash_core")
    with pytest.raises(OSError, match="gone"), load_progress("target t", GIB):
        raise OSError("gone")
    assert caplog.messages == ["loading target t: 1.00 GiB"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "0.98 KiB"),
        (256 << 20, "256 MiB"),
        (int(15.26 * GIB), "15.3 GiB"),
        (int(9.996 * GIB), "10.0 GiB"),
        (int(99.96 * GIB), "100 GiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert bytes_text(num_bytes) == text
