"""Every exception that gfm-calc raises on purpose.  Catching `GFMError` catches them all.

Messages are one line: what is wrong, where (file, frame, atom) and how to mend it.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class GFMError(Exception):
    """Base class of all errors that gfm-calc raises on purpose."""


class InvalidStructureError(GFMError, ValueError):
    """A structure that no model can be asked about.

    Attributes: `source` (file or caller's name), `frame` (index in the file), `atom` (index in the frame); each may be
    None.  `reason` is the message without them.
    """

    def __init__(self, reason: str, *, source: str | None = None, frame: int | None = None, atom: int | None = None):
        self.reason, self.source, self.frame, self.atom = reason, source, frame, atom
        super().__init__(reason)

    def __str__(self) -> str:
        where = [str(self.source)] if self.source is not None else []
        where += [f"frame {self.frame}"] if self.frame is not None else []
        where += [f"atom {self.atom}"] if self.atom is not None else []
        return f"{', '.join(where)}: {self.reason}" if where else self.reason

    def at(self, *, source: str | None = None, frame: int | None = None) -> InvalidStructureError:
        """The same error with the file and frame filled in where they were not known."""
        return type(self)(
            self.reason,
            source=self.source if self.source is not None else source,
            frame=self.frame if self.frame is not None else frame,
            atom=self.atom,
        )

    def __reduce__(self):
        return _rebuild, (type(self), self.reason, self.source, self.frame, self.atom)


class OutsideDomainError(InvalidStructureError):
    """A sound structure that the chosen head has not been trained for (element, charge or spin)."""


class HeadError(GFMError, ValueError):
    """A head that does not exist, was not named, or cannot do what was asked."""


class ConfigError(GFMError, ValueError):
    """A configuration, recipe or option with an unknown key or an impossible value."""


class InputFileError(GFMError):
    """A user's input file that is missing, empty, unreadable or damaged."""


class CorruptFileError(GFMError):
    """One of our own files whose content does not match its manifest, or that lacks a part."""


class UnsupportedVersionError(GFMError):
    """One of our own files, sound, but of a format that this version of gfm-calc does not read."""


class MissingDependencyError(GFMError, ImportError):
    """An optional package is needed; the message holds the pip line that brings it."""


class ConvergenceError(GFMError):
    """A job (relaxation, equation of state, phonons) that could not reach a usable result."""


def _rebuild(cls, reason, source, frame, atom):
    return cls(reason, source=source, frame=frame, atom=atom)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """' (did you mean X?)' with the closest known word, or '' where nothing is close."""
    close = get_close_matches(str(word).lower(), {k.lower(): k for k in known}, n=1, cutoff=0.5)
    originals = {k.lower(): k for k in known}
    return f" (did you mean {originals[close[0]]!r}?)" if close else ""


def one_line(error: BaseException) -> str:
    """Any exception's text on one line, cut at 500 characters."""
    text = str(error).strip()
    return " ".join(text.split())[:500] if text else type(error).__name__
