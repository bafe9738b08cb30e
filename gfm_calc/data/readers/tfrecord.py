"""TFRecord files of `tf.train.Example`, without TensorFlow: QCML as it is published.

Each record is framed by its length and by CRC-32C checksums; both are checked.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...errors import GFMError, InputFileError, InvalidStructureError
from .files import open_bytes
from .options import Layout, ReadOptions
from .qcml import LAYOUT as QCML
from .qcml import is_qcml
from .raw import RawFrame
from .tables import frame_of

FORMAT = "tfrecord"
_MAX_RECORD = 1 << 28
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def frames(path: Path, options: ReadOptions) -> Iterator[RawFrame | GFMError]:
    """Every record.

    Raises:
        InputFileError: a record that is cut off, or whose checksum does not match.
    """
    with open_bytes(path) as handle:
        for frame, record in enumerate(_records(handle, path)):
            try:
                row = _example(record)
            except (ValueError, IndexError, struct.error) as error:
                raise InputFileError(f"{path}, frame {frame}: not a tf.train.Example ({error}): damaged") from error
            try:
                layout = QCML if is_qcml(row) else Layout(name=FORMAT)
                yield frame_of(row, layout, path, frame)
            except InvalidStructureError as error:
                yield error


def _records(handle: BinaryIO, path: Path) -> Iterator[bytes]:
    frame = 0
    while head := handle.read(12):
        where = f"{path}, frame {frame}"
        if len(head) < 12:
            raise InputFileError(f"{where}: truncated")
        length, check = struct.unpack("<QI", head)
        if check != _masked_crc(head[:8]) or length > _MAX_RECORD:
            raise InputFileError(
                f"{where}: the length of the record does not match its checksum: damaged, or no TFRecord"
            )
        body = handle.read(length + 4)
        if len(body) < length + 4:
            raise InputFileError(f"{where}: truncated")
        if struct.unpack("<I", body[-4:])[0] != _masked_crc(body[:-4]):
            raise InputFileError(f"{where}: its checksum does not match: damaged")
        yield body[:-4]
        frame += 1


# ---- protocol buffers: Example{1: Features{1: map<name, Feature{1: bytes, 2: floats, 3: ints}>}} ----


def _example(record: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for _, features in _fields(record, wanted=1):
        for _, entry in _fields(features, wanted=1):
            parts = dict(_fields(entry))
            if not isinstance(parts.get(1), bytes) or not isinstance(parts.get(2), bytes):
                raise ValueError("a feature without a name or a value")
            value = _feature(parts[2])
            if value is not None:
                row[parts[1].decode()] = value
    return row


def _feature(data: bytes) -> Any:
    for kind, values in _fields(data):
        if kind == 1:
            words = [value for _, value in _fields(values, wanted=1)]
            return words[0] if len(words) == 1 else words
        numbers = [_numbers(value, kind) for _, value in _fields(values, wanted=1)]
        return np.concatenate(numbers) if numbers else np.zeros(0)
    return None


def _numbers(value: Any, kind: int) -> np.ndarray:
    if isinstance(value, int):
        return np.array([_signed(value)]) if kind == 3 else np.frombuffer(struct.pack("<I", value), "<f4")
    if kind == 2:
        return np.frombuffer(value, "<f4")
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(_signed(number))
    return np.array(found, np.int64)


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _fields(data: Any, wanted: int | None = None) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a message: bytes or int."""
    if not isinstance(data, bytes):
        raise ValueError("a number where a message should be")
    value: Any
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            value, at = data[at : at + length], at + length
        elif kind in (_FIXED32, _FIXED64):
            width = 4 if kind == _FIXED32 else 8
            value, at = int.from_bytes(data[at : at + width], "little"), at + width
        else:
            raise ValueError(f"field of kind {kind}")
        if at > len(data):
            raise ValueError("a field runs over its end")
        if wanted in (None, number):
            yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
        shift += 7
    raise ValueError("a number without end")


# ---- CRC-32C (Castagnoli), as TFRecord masks it ----


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        table.append(byte)
    return table


_CRC = _crc_table()


def _masked_crc(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
