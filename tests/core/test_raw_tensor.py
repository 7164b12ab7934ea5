"""Tensors as bytes and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dflash_core.contracts import RawTensor
from dflash_core.errors import ProtocolError
from dflash_core.raw_tensor import from_raw, to_raw

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.int64, torch.uint8]


@given(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3))
def test_what_was_sent_arrives(dtype: torch.dtype, shape: list[int]) -> None:
    sent = torch.randint(0, 100, shape).to(dtype)
    raw = to_raw(sent)
    over_the_wire = RawTensor(raw.dtype, raw.shape, bytes(raw.data))
    for received in (from_raw(raw), from_raw(over_the_wire)):
        assert received.dtype == dtype
        assert torch.equal(received, sent)


def test_a_transposed_tensor_arrives_in_order() -> None:
    sent = torch.arange(6, dtype=torch.bfloat16).view(2, 3).T
    assert torch.equal(from_raw(to_raw(sent)), sent)


def test_a_contiguous_tensor_is_not_copied() -> None:
    sent = torch.arange(4.0)
    received = from_raw(to_raw(sent))
    assert received.data_ptr() == sent.data_ptr()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawTensor("complex64", (1,), b"12345678"), "complex64"),
        (RawTensor("float32", (2,), b"1234567"), r"has 8 bytes, got 7"),
        (RawTensor("bfloat16", (2, 2), b"123456789"), r"has 8 bytes, got 9"),
        (RawTensor("float32", (-1,), b""), r"\[-1\]"),
        (RawTensor("float32", (0,), b"1"), r"has 0 bytes, got 1"),
    ],
)
def test_malformed_bytes_are_refused(raw: RawTensor, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        from_raw(raw)


def test_dtypes_that_do_not_travel_are_refused() -> None:
    with pytest.raises(ProtocolError, match="bool"):
        to_raw(torch.ones(2, dtype=torch.bool))
