"""The stream: one outcome a structure, in order, whatever the budget, and errors in their place."""

import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support import predict, random_model, same, structures

from gfm_calc.errors import ConfigError, GFMError, HeadError, InvalidStructureError, OutsideDomainError
from gfm_calc.predictor import Predictor, parse_device, parse_dtype


def test_order_and_numbers_do_not_depend_on_the_budget(model):
    stream = list(structures().values()) * 2
    wanted = [predict(model, atoms, "second") for atoms in stream]
    for budget in ({}, {"max_atoms": 1}, {"max_atoms": 7}, {"max_edges": 50}, {"max_atoms": 3, "max_edges": 10**9}):
        found = list(Predictor(model, ["second", "first"], **budget).predict(stream))
        assert [list(row) for row in found] == [["second", "first"]] * len(stream)
        for row, reference in zip(found, wanted):
            torch.testing.assert_close(row["second"].energy, reference.energy, rtol=0, atol=1e-9)
            torch.testing.assert_close(row["second"].forces, reference.forces, rtol=0, atol=1e-9)
            assert row["second"].energy.shape == (1,)


def test_errors_stand_in_their_place(model):
    stream = [molecule("H2O"), Atoms(), molecule("CH4"), Atoms("HH"), bulk("Cu")]
    found = list(Predictor(model, ["first"], max_atoms=4).predict(iter(stream), source="many.xyz", on_error="yield"))
    assert [isinstance(item, GFMError) for item in found] == [False, True, False, True, False]
    assert str(found[1]) == "many.xyz, frame 1: no atoms"
    assert str(found[3]).startswith("many.xyz, frame 3, atom ")
    assert [len(found[k]["first"].energies) for k in (0, 2, 4)] == [3, 5, 1]
    with pytest.raises(InvalidStructureError, match=r"many\.xyz, frame 1: no atoms"):
        list(Predictor(model, ["first"]).predict(stream, source="many.xyz"))


def test_the_stream_is_read_as_it_is_needed(model):
    taken = []

    def source():
        for k in range(100):
            taken.append(k)
            yield bulk("Cu")

    stream = Predictor(model, ["first"], max_atoms=2).predict(source())
    next(stream)
    assert len(taken) <= 3


def test_nothing_in_nothing_out(model):
    assert list(Predictor(model, ["first"]).predict([])) == []


def test_domain(saved_model):
    strict, loose = Predictor(saved_model, ["first"]), Predictor(saved_model, ["first"], strict=False)
    cases = [
        (Atoms("U"), {}, "head first has not seen U; strict=False predicts all the same"),
        (molecule("H2O"), {"charge": 5}, r"was trained on charge -3 to \+3 only, not \+5"),
        (molecule("H2O"), {"spin": 9}, "not trained on multiplicity 9 here"),
    ]
    for atoms, info, message in cases:
        atoms.info.update(info)
        with pytest.raises(OutsideDomainError, match=message):
            list(strict.predict([atoms]))
        assert torch.isfinite(next(iter(loose.predict([atoms])))["first"].energy)


def test_heads_and_options(model, saved_model):
    assert Predictor(model, "first").heads == ["first"]
    for heads in (["frist"], [0], [None]):
        with pytest.raises(HeadError):
            Predictor(model, heads)
    with pytest.raises(HeadError, match="no head chosen"):
        list(Predictor(model, []).predict([Atoms("H")]))
    for dtype in ("float16", "double", 64, None, torch.bfloat16):
        with pytest.raises(ConfigError, match="dtype must be"):
            Predictor(saved_model, ["first"], dtype=dtype)
    assert parse_dtype("float64") == parse_dtype(torch.float64) == torch.float64
    for device in ("tpu", "cpu:x", 3.5, "meta", ""):
        with pytest.raises(ConfigError, match="device"):
            parse_device(device)
    assert parse_device("cpu") == torch.device("cpu")


def test_without_forces_and_with_properties(saved_model):
    predictor = Predictor(saved_model, ["third", "gap", "dipoles"], dtype="float64", forces=False)
    rows = list(predictor.predict([molecule("H2O"), molecule("CH4")]))
    assert rows[0]["third"].forces is None
    assert [row["dipoles"].value.shape for row in rows] == [(3, 3), (5, 3)]
    assert [row["gap"].value.shape for row in rows] == [(1,), (1,)]


def test_numbers_that_overflow_are_an_error(monkeypatch):
    """A prediction is finite, or an error that says so."""
    model = random_model(dtype=torch.float32, seed=8)
    real = model.predict

    def broken(*args, **options):
        found = real(*args, **options)
        for prediction in found.values():
            prediction.energy[0] = float("inf")
        return found

    monkeypatch.setattr(model, "predict", broken)
    found = list(Predictor(model, ["first"]).predict([bulk("Cu"), bulk("Al")], on_error="yield"))
    assert isinstance(found[0], InvalidStructureError) and found[0].frame == 0
    assert not isinstance(found[1], GFMError)


@pytest.mark.promise("R12")
def test_predictor_is_the_model(model):
    for atoms in structures().values():
        (row,) = Predictor(model, ["third"]).predict([atoms])
        assert same(row["third"], predict(model, atoms, "third"))
