"""JSON files of any size, one element at a time.

Only one value of the stream is in memory: an entry of a list, or the value of a key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

_CHUNK = 1 << 18
MAX_VALUE = 1 << 29  # characters of one value; beyond, the file is not what we take it for
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class JSONDamage(ValueError):
    """The text is not JSON, or ends too soon; the message says where."""


class JSONStream:
    """A cursor on a text file of JSON.

    `items()` and `members()` walk the list or object that begins at the cursor; for each entry the caller takes `value()`
    or walks into it; an entry that is not taken is skipped.

    Raises: JSONDamage from every method.
    """

    def __init__(self, handle: TextIO):
        self._handle = handle
        self._buffer = ""
        self._at = 0
        self._before = 0  # characters dropped from the front
        self._taken = True

    def peek(self) -> str:
        """The first character of what comes next, '' at the end."""
        while True:
            self._at = _SPACE.match(self._buffer, self._at).end()
            if self._at < len(self._buffer):
                return self._buffer[self._at]
            if not self._more():
                return ""

    def items(self) -> Iterator[int]:
        """Walk a list: the index of each entry, the cursor on it."""
        self._expect("[")
        index = 0
        while self._next_entry("]", first=index == 0):
            yield index
            self._skip_untaken()
            index += 1

    def members(self) -> Iterator[str]:
        """Walk an object: each key, the cursor on its value."""
        self._expect("{")
        first = True
        while self._next_entry("}", first=first):
            self._taken = True
            key = self.value()
            if not isinstance(key, str):
                self._fail("a key that is no text")
            self._expect(":")
            self._taken = False
            yield key
            self._skip_untaken()
            first = False

    def value(self) -> Any:
        """The whole value at the cursor."""
        self._taken = True
        if not self.peek():
            self._fail("ends too soon")
        while True:
            try:
                found, end = _DECODER.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                # An error well inside the text is damage; at its end, or in a string that goes on, more may mend it.
                unfinished = error.pos > len(self._buffer) - 32 or error.msg.startswith("Unterminated string")
                if not unfinished or not self._more():
                    self._fail(error.msg, error.pos)
                continue
            except RecursionError:
                self._fail("nested too deeply")
            except ValueError as error:  # a number of more digits than Python reads
                self._fail(str(error))
            if end == len(self._buffer) and self._more():
                continue  # a number may go on
            self._at = end
            return found

    def end(self) -> None:
        """Check that nothing follows."""
        if self.peek():
            self._fail("something follows the end")

    def _next_entry(self, closing: str, *, first: bool) -> bool:
        character = self.peek()
        if character == closing:
            self._at += 1
            self._taken = True
            return False
        if not first:
            self._expect(",")
            self.peek()
        self._taken = False
        return True

    def _skip_untaken(self) -> None:
        if not self._taken:
            self.value()

    def _expect(self, character: str) -> None:
        found = self.peek()
        if found != character:
            self._fail(f"{character!r} expected, found {found!r}" if found else "ends too soon")
        self._at += 1
        self._taken = True

    def _more(self) -> bool:
        """Read on; forgets what lies before the cursor.  The step grows, so that a long value is parsed few times."""
        if len(self._buffer) - self._at > MAX_VALUE:
            self._fail(f"one value is longer than {MAX_VALUE} characters")
        chunk = self._handle.read(max(_CHUNK, len(self._buffer) - self._at))
        self._before += self._at
        self._buffer = self._buffer[self._at :] + chunk
        self._at = 0
        return bool(chunk)

    def _fail(self, reason: str, position: int | None = None) -> None:
        at = self._before + (self._at if position is None else position)
        raise JSONDamage(f"not valid JSON at character {at}: {reason}")
