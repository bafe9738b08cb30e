"""LMDB files read page by page in Python, every offset checked.

The C library maps the file and follows whatever it finds there: a damaged file can end the process.  A file that a
stranger made is therefore read here.  Format: LMDB 0.9, `mdb.c` (little-endian, 64 bit).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from ...errors import InputFileError

_MAGIC = 0xBEEFC0DE
_HEADER = struct.Struct("<QHHHH")  # page number, pad, flags, lower, upper
_META = struct.Struct("<IIQQ")  # magic, version, address, map size
_TREE = struct.Struct("<IHHQQQQQ")  # pad, flags, depth, branch, leaf, overflow pages, entries, root
_NODE = struct.Struct("<HHHH")  # low, high, flags, key size
_BRANCH, _LEAF, _OVERFLOW, _META_PAGE = 1, 2, 4, 8
_BIG, _SUBTREE, _DUPLICATES = 1, 2, 4
_NOWHERE = 0xFFFFFFFFFFFFFFFF
_MAX_DEPTH = 32
_MAX_VALUE = 1 << 30


@dataclass(frozen=True)
class _Node:
    key: bytes
    flags: int
    size: int  # of the value; of a branch: the low 32 bits of the child's page
    at: int  # where the value begins


class LMDBFile:
    """The main table of an LMDB file.

    Args:
        path: the data file itself.

    Raises:
        InputFileError: from every method, where the file is not LMDB or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with open(path, "rb") as handle:
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
        self._page_size = 4096
        self._root, self.num_entries = self._newest_root()

    def close(self) -> None:
        """Give the file back."""
        self._map.close()

    def __enter__(self) -> LMDBFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def get(self, key: bytes) -> bytes | None:
        """The value of `key`, None where there is none."""
        page = self._root
        for _ in range(_MAX_DEPTH):
            if page == _NOWHERE:
                return None
            start, flags, nodes = self._page(page)
            if flags & _LEAF:
                found = self._bisect(start, nodes, key, first=0)
                node = self._node(start, nodes[found]) if 0 <= found < len(nodes) else None
                return self._value(node) if node is not None and node.key == key else None
            page = self._child(start, nodes[max(0, self._bisect(start, nodes, key, first=1))])
        self._damaged("its tree has no end")

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Every key and value, by key."""
        stack = [(self._root, 0)] if self._root != _NOWHERE else []
        seen = 0
        while stack:
            page, depth = stack.pop()
            if depth > _MAX_DEPTH:
                self._damaged("its tree has no end")
            start, flags, nodes = self._page(page)
            if flags & _BRANCH:
                stack += [(self._child(start, node), depth + 1) for node in reversed(nodes)]
                continue
            for offset in nodes:
                node = self._node(start, offset)
                seen += 1
                if seen > self.num_entries:
                    self._damaged("it holds more entries than it says")
                yield node.key, self._value(node)

    def _newest_root(self) -> tuple[int, int]:
        """(root page, number of entries) of the newer of the two meta pages."""
        found = []
        first = self._meta(0)
        if first is not None:
            self._page_size = first[3]
            found.append(first)
            second = self._meta(self._page_size)
            found += [second] if second is not None else []
        if not found:
            raise InputFileError(f"{self.path}: not an LMDB file")
        _, root, entries, _ = max(found)
        return root, entries

    def _meta(self, start: int) -> tuple[int, int, int, int] | None:
        """(transaction, root, entries, page size) of a meta page, None where there is none."""
        if len(self._map) < start + 160:
            return None
        _, _, flags, _, _ = _HEADER.unpack_from(self._map, start)
        magic, version, _, _ = _META.unpack_from(self._map, start + 16)
        if magic != _MAGIC or version != 1 or not flags & _META_PAGE:
            return None
        page_size = _TREE.unpack_from(self._map, start + 40)[0]
        tree = _TREE.unpack_from(self._map, start + 88)
        transaction = struct.unpack_from("<Q", self._map, start + 144)[0]
        if page_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536) or tree[1] & (_DUPLICATES | 2):
            return None
        return transaction, tree[7], tree[6], page_size

    def _page(self, number: int) -> tuple[int, int, tuple[int, ...]]:
        """(start, flags, offsets of the nodes) of a branch or leaf page."""
        start = number * self._page_size
        if start + self._page_size > len(self._map):
            self._damaged(f"page {number} lies beyond its end")
        stored, _, flags, lower, upper = _HEADER.unpack_from(self._map, start)
        if stored != number or flags & 0xF not in (_BRANCH, _LEAF) or not 16 <= lower <= upper <= self._page_size:
            self._damaged(f"page {number} is not a page of its tree")
        nodes = struct.unpack_from(f"<{(lower - 16) // 2}H", self._map, start + 16)
        if not nodes:
            self._damaged(f"page {number} is empty")
        return start, flags, nodes

    def _node(self, start: int, offset: int) -> _Node:
        if not 16 <= offset <= self._page_size - 8:
            self._damaged("an entry points outside its page")
        low, high, flags, key_size = _NODE.unpack_from(self._map, start + offset)
        at = start + offset + 8 + key_size
        if offset + 8 + key_size > self._page_size:
            self._damaged("a key runs over its page")
        return _Node(self._map[at - key_size : at], flags, low | high << 16, at)

    def _child(self, start: int, offset: int) -> int:
        node = self._node(start, offset)
        return node.size | node.flags << 32

    def _bisect(self, start: int, nodes: tuple[int, ...], key: bytes, first: int) -> int:
        """Index of the last node whose key is not above `key`; the first key of a branch stands for the lowest."""
        low, high = first, len(nodes)
        while low < high:
            middle = (low + high) // 2
            if self._node(start, nodes[middle]).key <= key:
                low = middle + 1
            else:
                high = middle
        return low - 1

    def _value(self, node: _Node) -> bytes:
        if node.flags & (_SUBTREE | _DUPLICATES):
            self._damaged("it holds tables within tables, which are not read")
        if node.size > _MAX_VALUE:
            self._damaged(f"a value of {node.size} bytes")
        if not node.flags & _BIG:
            value = self._map[node.at : node.at + node.size]
            if node.at % self._page_size + node.size > self._page_size:
                self._damaged("a value runs over its page")
            return value
        page = struct.unpack("<Q", self._map[node.at : node.at + 8].ljust(8, b"\xff"))[0]
        start = page * self._page_size
        if start + 16 + node.size > len(self._map):
            self._damaged("a value lies beyond its end")
        stored, _, flags, _, _ = _HEADER.unpack_from(self._map, start)
        if stored != page or not flags & _OVERFLOW:
            self._damaged(f"page {page} is not the value that it should be")
        return self._map[start + 16 : start + 16 + node.size]

    def _damaged(self, reason: str) -> NoReturn:
        raise InputFileError(f"{self.path}: damaged LMDB file: {reason}")
