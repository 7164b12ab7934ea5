"""Hypothesis strategies for any protobuf message, made from its descriptor.

Fields get values of their type: mostly small ones, so that messages pass the first checks, often the extremes, and
where `hints` has the field's name what that says, so that they get further.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

Hints = Mapping[str, st.SearchStrategy[Any]]

_RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_SINT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_FIXED64: (0, 2**64 - 1),
}
_FLOATS = st.sampled_from([0.0, 1.0, 0.5, -1.0, 1e-30, 1e30, float("inf"), float("-inf"), float("nan")])
_BYTES = (
    st.binary(max_size=24)
    | st.lists(st.integers(0, 2**31 - 1), max_size=8).map(lambda ids: b"".join(i.to_bytes(4, "little") for i in ids))
    | st.lists(st.integers(0, 9), max_size=8).map(lambda ids: b"".join(i.to_bytes(4, "little") for i in ids))
)


@st.composite
def messages(draw: st.DrawFn, message_type: type[Message], hints: Hints) -> Message:
    """One message with any of its fields."""
    message = message_type()
    for field in message_type.DESCRIPTOR.fields:
        if field.containing_oneof is not None and message.WhichOneof(field.containing_oneof.name):
            continue
        if draw(st.integers(0, 3)) == 0:
            continue
        if field.is_repeated and field.message_type is not None and field.message_type.GetOptions().map_entry:
            _draw_map(draw, getattr(message, field.name), field, hints)
        elif field.is_repeated:
            values = draw(st.lists(_values(field, hints), max_size=3))
            getattr(message, field.name).extend(values)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(draw(_values(field, hints)))
        else:
            setattr(message, field.name, draw(_values(field, hints)))
    return message


def _draw_map(draw: st.DrawFn, entries: Any, field: Any, hints: Hints) -> None:
    key_field, value_field = (field.message_type.fields_by_name[name] for name in ("key", "value"))
    for key in draw(st.lists(_values(key_field, hints), max_size=2)):
        value = draw(_values(value_field, hints))
        if value_field.message_type is not None:
            entries[key].CopyFrom(value)
        else:
            entries[key] = value


def _values(field: Any, hints: Hints) -> st.SearchStrategy[Any]:
    hint = hints.get(field.name)
    return _any_value(field, hints) if hint is None else st.one_of(hint, hint, _any_value(field, hints))


def _any_value(field: Any, hints: Hints) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type._concrete_class, hints)
    if field.enum_type is not None:
        return st.sampled_from([value.number for value in field.enum_type.values])
    if field.type in _RANGES:
        least, most = _RANGES[field.type]
        return st.integers(0, 4) | st.sampled_from([least, most, most // 2 + 1]) | st.integers(least, most)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return _FLOATS
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.text(st.characters(codec="utf-8"), max_size=6) | st.just("x" * 5000)
    assert field.type == FieldDescriptor.TYPE_BYTES, field.type
    return _BYTES
