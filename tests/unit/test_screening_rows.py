"""R12: a row holds what the predictor and the calculator say; failures are rows; budgets and memory change no number."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from ase.units import GPa
from support import head_spec, predict, random_model, structures

from gfm_calc import GFMCalculator
from gfm_calc.config import HeadSpec
from gfm_calc.model import GFMModel
from gfm_calc.predictor import Predictor
from gfm_calc.screening.elements import element_energies
from gfm_calc.screening.engine import Engine
from gfm_calc.screening.prepare import prepare
from gfm_calc.screening.ranking import Best, Filter, Objective, Ranking
from gfm_calc.screening.settings import Settings

HEADS = ("first", "third")


class Given:
    """Structures at hand as a stream."""

    def __init__(self, several):
        self.several = list(several)

    def __len__(self):
        return len(self.several)

    def made(self, start, stop):
        return iter([(f"structure {k}", atoms) for k, atoms in enumerate(self.several)][start:stop])


def rows_of(several, model=None, elements=None, **settings):
    """[{column: value}] of the rows."""
    model = model or random_model()
    made = Settings(heads=settings.pop("heads", HEADS), **settings)
    predictor = Predictor(model, made.heads, forces=made.quantity != "energies", uncertainty=None)
    predictor.mixed = made.dtype == "bfloat16"
    engine = Engine(predictor, made, elements or {})
    candidates = prepare(Given(several), model.config.cutoff, 0, len(several))
    rows = engine.rows(candidates, 0, len(several))
    return [{name: rows.values[name][k] for name in rows.columns} for k in range(len(rows.values["candidate"]))]


@pytest.mark.promise("R12", count=22)
def test_rows_are_what_predictor_and_calculator_say():
    several = list(structures().values())
    found = rows_of(several, quantity="stress", keep=("forces", "structures"), max_edges=300)
    predicted = list(Predictor(random_model(), HEADS).predict(several))
    assert len(found) == 2 * len(several)
    for index, row in enumerate(found):
        atoms, head = several[index // 2].copy(), HEADS[index % 2]
        assert (row["candidate"], row["head"], row["status"], row["num_atoms"]) == (index // 2, head, "ok", len(atoms))
        atoms.info = several[index // 2].info
        atoms.calc = GFMCalculator(random_model(), head=head)
        own = predicted[index // 2][head]
        assert row["energy"] == pytest.approx(own.energy.item(), abs=1e-9)
        assert row["energy"] == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        assert row["energy_per_atom"] == row["energy"] / len(atoms)
        forces = np.reshape(row["forces"], (-1, 3))
        assert np.abs(forces - atoms.get_forces()).max() < 1e-9
        assert row["max_force"] == pytest.approx(np.linalg.norm(forces, axis=1).max(), abs=1e-9)
        assert np.array_equal(np.reshape(row["positions"], (-1, 3)), atoms.positions)
        if "stress" in atoms.calc.results:
            assert np.abs(np.array(row["stress"]) - atoms.get_stress()).max() < 1e-9
            assert row["pressure"] == pytest.approx(-atoms.get_stress()[:3].mean() / GPa, abs=1e-7)
        else:
            assert row["stress"] is None and np.isnan(row["pressure"])
        if atoms.pbc.all():
            assert row["volume"] == pytest.approx(atoms.get_volume())
            density = atoms.get_masses().sum() / atoms.get_volume() * 1.66053907
            assert row["density"] == pytest.approx(density, rel=1e-6)
        else:
            assert np.isnan(row["volume"])


def test_disagreement_of_heads_is_that_of_compare_heads():
    atoms = structures()["molecule"]
    found = rows_of([atoms])
    calculator = GFMCalculator(random_model(), head="first")
    spread = calculator.compare_heads(atoms, HEADS).forces_spread.max()
    assert [row["force_spread"] for row in found] == pytest.approx([spread, spread], abs=1e-9)
    assert np.isnan(rows_of([atoms], heads=("first",))[0]["force_spread"])


def narrow_model():
    """The second head knows copper alone, and molecules were not in its training."""
    model = random_model()
    specs = [head_spec("first"), head_spec("third", elements=("Cu",), periodicity=("bulk",))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return GFMModel(model.config, specs).requires_grad_(False).eval().to(torch.float64)


def test_each_head_refuses_for_itself():
    several = [structures()["molecule"], bulk("Cu")]
    found = rows_of(several, narrow_model())
    assert [row["status"] for row in found] == ["ok", "outside", "ok", "ok"]
    assert "has not seen H, C, O" in found[1]["error"] and np.isnan(found[1]["energy"])
    assert found[1]["formula"] == found[0]["formula"] == "C2H6O" or found[0]["formula"]
    assert np.isnan(found[0]["force_spread"]) and not np.isnan(found[2]["force_spread"])
    lax = rows_of(several, narrow_model(), strict=False)
    assert [row["status"] for row in lax] == ["ok"] * 4
    assert lax[1]["domain"] == "unseen H; unseen C; unseen O; no molecule in training" and lax[3]["domain"] == ""
    assert lax[0]["energy"] == pytest.approx(found[0]["energy"], abs=1e-9)


def test_failures_are_rows():
    broken = bulk("Cu")
    broken.positions[0] = np.nan
    close = Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.05]])
    charged = Atoms("H", info={"charge": 2})
    several = [broken, bulk("Cu"), close, Atoms(), charged, Atoms("CO", positions=[[0, 0, 0], [0, 0, 0.4]])]
    found = rows_of(several, heads=("first",))
    assert [row["status"] for row in found] == ["invalid", "ok", "invalid", "invalid", "invalid", "ok"]
    assert "NaN or infinite" in found[0]["error"] and "two atoms at one place" in found[2]["error"]
    assert "no atoms" in found[3]["error"] and "removes more than all" in found[4]["error"]
    assert all("\n" not in row["error"] for row in found if row["error"])
    assert "of a bond" in found[5]["domain"] and found[5]["closest"] < 0.6


def test_a_number_that_is_not_finite_is_a_row():
    model = GFMModel(random_model().config, [head_spec("first")]).requires_grad_(False).eval()
    model.energy_stack.scale.fill_(1e300)
    (found,) = rows_of([bulk("Cu")], model, heads=("first",))
    assert found["status"] == "invalid" and "overflows" in found["error"] and np.isnan(found["energy"])


def test_energies_alone():
    several = list(structures().values())
    found = rows_of(several, quantity="energies")
    full = rows_of(several)
    assert [row["energy"] for row in found] == pytest.approx([row["energy"] for row in full], abs=1e-9)
    assert all(np.isnan(row["max_force"]) and np.isnan(row["pressure"]) for row in found)


def test_formation_energies():
    model = random_model()
    predictor = Predictor(model, HEADS)
    elements = element_energies(predictor, [bulk("Cu", a=3.0)])
    assert set(elements) == set(HEADS) and len(elements["first"]) > 70
    assert {"O", "S", "P", "Br", "I", "Te"} <= set(elements["first"])
    found = rows_of([bulk("CuZn", "cesiumchloride", a=2.95)], elements=elements)
    for row in found:
        own = elements[row["head"]]
        assert row["formation_energy_per_atom"] == pytest.approx((row["energy"] - own["Cu"] - own["Zn"]) / 2, abs=1e-9)
    missing = rows_of([bulk("CuZn", "cesiumchloride", a=2.95)], elements={"first": {"Cu": 1.0}})
    assert all(np.isnan(row["formation_energy_per_atom"]) for row in missing)


def test_memory_that_does_not_suffice_changes_no_number(monkeypatch):
    several = list(structures().values())
    wanted = rows_of(several)
    edges = [c.edges[0].shape[1] for c in prepare(Given(several), random_model().config.cutoff, 0, len(several))]
    room = sorted(edges)[-2]
    real, tried = Predictor.predict_batch, []

    def small(self, graphs):
        edges = sum(graph.edge_index.shape[1] for graph in graphs)
        tried.append(edges)
        if edges > room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return real(self, graphs)

    monkeypatch.setattr(Predictor, "predict_batch", small)
    found = rows_of(several)
    assert min(tried) < room < max(tried)
    too_large = [row for row in found if row["status"] == "failed"]
    assert len(too_large) == 2 and all("does not fit into the memory" in row["error"] for row in too_large)
    for row, other in zip(found, wanted):
        if row["status"] == "ok":
            assert row["energy"] == pytest.approx(other["energy"], abs=1e-9)


def test_other_errors_of_torch_are_not_taken_for_memory(monkeypatch):
    def broken(self, graphs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Predictor, "predict_batch", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        rows_of([bulk("Cu")])


def test_bfloat16_is_close():
    several = [atoms for name, atoms in structures().items() if name in ("molecule", "crystal", "slab")]
    model = random_model(dtype=torch.float32)
    exact, mixed = rows_of(several, model), rows_of(several, model, dtype="bfloat16")
    differences = [abs(a["energy_per_atom"] - b["energy_per_atom"]) for a, b in zip(exact, mixed)]
    assert 0 < max(differences) < 0.2


def test_a_mixture_is_the_sum_of_its_heads():
    from support import batch_of

    model = random_model()
    batch = batch_of(model, *(atoms for atoms in structures().values()))
    weights = {"third": 0.25, "first": 0.75}
    mixed, apart = model.predict_mixture(batch, weights), model.predict(batch, list(weights))
    reference = model.energy_stack.reference[:, batch.atomic_numbers]
    energies = sum(w * (apart[h].energies - reference[model.energy_heads.index(h)]) for h, w in weights.items())
    assert torch.allclose(mixed.energies, energies, atol=1e-9)
    for name in ("forces", "virial"):
        summed = sum(w * getattr(apart[h], name) for h, w in weights.items())
        assert torch.allclose(getattr(mixed, name), summed, atol=1e-9)
    from gfm_calc.errors import HeadError

    with pytest.raises(HeadError, match="mixture"):
        model.predict_mixture(batch, {})


# ---- ranking ----


def test_the_best_are_those_of_sorting_whatever_the_order():
    random = np.random.default_rng(0)
    values = np.round(random.normal(size=400), 1)
    values[::17] = np.nan
    status = np.where(np.arange(400) % 5, "ok", "invalid").astype(object)
    heads = np.array(["a"] * 400, object)
    for objective in (Objective(column="energy"), Objective(column="energy", highest=True),
                      Objective(column="energy", target=0.3)):  # fmt: skip
        kept = Filter.parse("max_force < 0.5")
        ranking = Ranking(objective=objective, filters=(kept,), top=25)
        forces = random.uniform(size=400)
        good = (status == "ok") & (forces < 0.5) & ~np.isnan(values)
        costs = objective.costs(values)
        wanted = sorted(np.flatnonzero(good).tolist(), key=lambda k: (costs[k], k))[:25]
        for order in (np.arange(400), random.permutation(400)):
            best = Best(ranking, ["a"])
            for part in np.array_split(order, 7):
                columns = {"energy": values[part], "status": status[part], "max_force": forces[part]}
                best.add(part, heads[part], columns)
            assert [number for number, _ in best.of("a")] == wanted


def test_filters_and_objectives_are_data():
    assert str(Objective.parse("volume_per_atom ~ 12.5")) == "volume_per_atom nearest to 12.5"
    assert str(Filter.parse("uncertainty<=0.05")) == "uncertainty <= 0.05"
    domain = Filter.parse('domain == ""')
    assert domain.holds(np.array(["", "unseen Xe"], object)).tolist() == [True, False]
    assert not Filter.parse("uncertainty < 1").holds(np.array([np.nan]))[0]


@pytest.mark.parametrize("text, said", [
    ("energie < 1", "did you mean 'energy'?"), ("energy", "write COLUMN < NUMBER"), ("energy < low", "is no number"),
    ("energy < nan", "is no number"), ("formula < Cu", "compare it with == or !="),
    ("__import__('os') < 1", "write COLUMN < NUMBER"),
])  # fmt: skip
def test_wrong_filters(text, said):
    from gfm_calc.errors import ConfigError

    with pytest.raises(ConfigError) as caught:
        Filter.parse(text)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_uncertainty_of_heads_that_know_theirs():
    """The column is the model's expected error of the energy an atom, where all heads of the run have one."""
    model, atoms = random_model(uncertainty=("first", "third")), bulk("Cu", cubic=True)
    wanted = predict(model, atoms, "first", uncertainty=True).energy_uncertainty.item()
    assert rows_of([atoms], model, heads=("first",))[0]["uncertainty"] == pytest.approx(wanted / 4)
    assert np.isnan(rows_of([atoms], model, heads=("first", "second"))[0]["uncertainty"])


def test_head_cards_without_periodicity_raise_no_doubts():
    assert isinstance(narrow_model().specs["first"], HeadSpec)
    assert rows_of([structures()["molecule"]], heads=("first",))[0]["domain"] == ""
