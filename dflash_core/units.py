"""Sizes and times as people read them."""

from __future__ import annotations

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def bytes_text(num_bytes: int) -> str:
    """Three figures and a unit: 15.3 GiB, 256 MiB, 12 bytes."""
    value, unit = float(num_bytes), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0 or value >= 99.95:
        return f"{value:.0f} {_UNITS[unit]}"
    return f"{value:.1f} {_UNITS[unit]}" if value >= 9.995 else f"{value:.2f} {_UNITS[unit]}"
