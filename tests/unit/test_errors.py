"""Errors: one family, one line, where and what."""

import pickle

import pytest

from gfm_calc import errors
from gfm_calc.errors import GFMError, InvalidStructureError, OutsideDomainError, did_you_mean, one_line


def test_one_class_catches_all():
    kinds = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, Exception)]
    assert len(kinds) >= 10
    assert all(issubclass(kind, GFMError) for kind in kinds)


@pytest.mark.parametrize("kind", [InvalidStructureError, OutsideDomainError])
def test_message_names_file_frame_and_atom(kind):
    error = kind("two atoms at one place", source="a.xyz", frame=3, atom=0)
    assert str(error) == "a.xyz, frame 3, atom 0: two atoms at one place"
    assert str(kind("no atoms")) == "no atoms"


def test_place_is_filled_in_where_it_was_unknown():
    known = InvalidStructureError("x", source="first.xyz", atom=2).at(source="second.xyz", frame=0)
    assert (known.source, known.frame, known.atom, known.reason) == ("first.xyz", 0, 2, "x")
    assert type(OutsideDomainError("x").at(frame=1)) is OutsideDomainError


def test_errors_travel_between_processes():
    error = OutsideDomainError("has not seen U", source="a.xyz", frame=1, atom=None)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is OutsideDomainError
    assert str(copy) == str(error)


def test_nearest_word():
    assert did_you_mean("PBE", ["pbe-vasp", "gfn2-xtb", "pbe"]) == " (did you mean 'pbe'?)"
    assert did_you_mean("zzz", ["pbe"]) == ""
    assert did_you_mean(3, ["pbe"]) == ""


def test_one_line_is_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 10_000))) <= 500
