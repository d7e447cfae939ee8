"""Hypothesis strategies for syscall messages, shared by the tests."""

from __future__ import annotations

import enum
import typing

import msgspec
from hypothesis import strategies as st

from syscalls.codec import Answer, Call, Hello, Outputs, Reply, Request, Welcome

_scalars: dict[object, st.SearchStrategy[object]] = {
    int: st.integers(-(2**31), 2**31 - 1),
    float: st.floats(allow_nan=False, width=32),
    str: st.text(max_size=8),
    bytes: st.binary(max_size=8),
    bool: st.booleans(),
    type(None): st.none(),
}


def values_of(kind: object) -> st.SearchStrategy[typing.Any]:
    """Values of a field's type: scalars, structs, unions, dictionaries, and tuples."""
    if kind in _scalars:
        return _scalars[kind]
    arguments = typing.get_args(kind)
    origin = typing.get_origin(kind)
    if origin is tuple:
        if arguments[-1] is not Ellipsis:
            return st.tuples(*map(values_of, arguments))
        return st.lists(values_of(arguments[0]), max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=3)
    if arguments:
        return st.one_of([values_of(argument) for argument in arguments])
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: values_of(hints[name]) for name in kind.__struct_fields__})
    assert isinstance(kind, enum.EnumMeta)
    return st.sampled_from(list(kind))


client_frames = values_of(Hello) | st.builds(Call, st.integers(1, 2**32), values_of(Request))
kernel_frames = st.one_of(
    values_of(Welcome), values_of(Outputs), st.builds(Reply, st.integers(1, 2**32), values_of(Answer))
)
