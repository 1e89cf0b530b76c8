"""Thrift's compact protocol, as far as the headers of Parquet pages need it.

https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from typing import Any

TRUE, FALSE, BYTE, DOUBLE, BINARY, LIST, SET, STRUCT = 1, 2, 3, 7, 8, 9, 10, 12
INTEGERS = (4, 5, 6)


def read_struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """Read a struct.

    Returns:
        Its fields by number, and where it ends.

    Raises:
        ValueError: There is none, or one that no page header has.
        IndexError: The data ends within it.
    """
    found: dict[int, Any] = {}
    number = 0
    while True:
        head, at = data[at], at + 1
        if head == 0:
            return found, at
        if head >> 4:
            number += head >> 4
        else:
            number, at = _zigzag(data, at)
        found[number], at = _value(data, at, head & 15)


def _value(data: memoryview, at: int, kind: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE):
        return kind == TRUE, at
    if kind == BYTE:
        return data[at], at + 1
    if kind in INTEGERS:
        return _zigzag(data, at)
    if kind == DOUBLE:
        return None, at + 8
    if kind == BINARY:
        size, at = _varint(data, at)
        return bytes(data[at : at + size]), at + size
    if kind in (LIST, SET):
        return _list(data, at)
    if kind == STRUCT:
        return read_struct(data, at)
    raise ValueError(f"type {kind}")


def _list(data: memoryview, at: int) -> tuple[list[Any], int]:
    head, at = data[at], at + 1
    size = head >> 4
    if size == 15:
        size, at = _varint(data, at)
    found = []
    for _ in range(size):
        value, at = _value(data, at, head & 15)
        found.append(value)
    return found, at


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _zigzag(data: memoryview, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at
