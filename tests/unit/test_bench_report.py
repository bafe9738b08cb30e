"""Tables and the model card come from result files, and from nothing else."""

import pytest

from gfm_calc.benchmarks.card import model_card
from gfm_calc.benchmarks.glance import glance
from gfm_calc.benchmarks.report import markdown, markdown_table, numeric_columns, tables, with_results, without_results
from gfm_calc.errors import ConfigError

ABOUT = {
    "command": "gfm bench speed --threads 1", "date": "2026-01-02", "model_id": "0123456789abcdef", "weights": "feed",
    "threads": 1, "machine": {"processor": "Some CPU", "cores": 2}, "versions": {"gfm-calc": "0.1.0", "torch": "2.13.0"},
}  # fmt: skip


def frame(benchmark, **content):
    return {"benchmark": benchmark, "format_version": 1, "provenance": ABOUT, **content}


SPEED = frame(
    "speed",
    contenders=[
        {"key": "gfm-calc eager", "name": "gfm-calc", "mode": "eager", "version": "0.1.0", "model": "id", "parameters": 1000},
        {"key": "chgnet", "name": "CHGNet", "version": "0.4.2", "model": "CHGNet 0.3.0", "parameters": 412525},
    ],
    batches=[
        {"contender": "gfm-calc eager", "threads": 1, "set": "molecules", "batch": 32, "structures_per_s": 612.3,
         "atoms_per_s": 4898.4, "spread": 0.1},
        {"contender": "chgnet", "threads": 1, "set": "molecules", "batch": 32, "error": "it broke"},
    ],
    dynamics=[{"contender": "chgnet", "threads": 1, "system": "Cu", "atoms": 256, "ms_per_step": 1234.5, "spread": 0.0}],
)  # fmt: skip
FIGURES = {"frames": 7, "energy_mae_mev_per_atom": 12.34, "forces_mae_mev_per_a": 95.0}
TRIVIAL = {"frames": 7, "energy_mae_mev_per_atom": 500.0, "forces_mae_mev_per_a": 100.0}
ACCURACY = frame(
    "accuracy",
    heads=[{
        "head": "xtb", "test_frames": 7, "refused": {}, "compositions": 3, "model": FIGURES, "mean": TRIVIAL,
        "references": TRIVIAL, "composition": TRIVIAL, "by_source": {"file_a": FIGURES},
    }],
)  # fmt: skip
PHYSICS = frame(
    "physics",
    nve=[{"name": "Cu", "head": "xtb", "atoms": 64, "timestep_fs": 2.0, "picoseconds": 20.0, "temperature_k": 301.2,
          "slope_mev_per_atom_per_ps": -0.00123, "rms_fluctuation_mev_per_atom": 0.021}],
    relaxations=[
        {"name": "water", "head": "xtb", "converged": True, "steps": 9, "geometry": {"H-O_a": 0.9601, "H-O-H_deg": 104.52},
         "reference": {"H-O_a": 0.9592, "H-O-H_deg": 107.23}},
        {"name": "slab", "head": "xtb", "converged": False, "steps": 500, "geometry": {"d12_a": 2.0}},
    ],
    pairs=[{"head": "xtb", "elements": 3, "pairs": 6, "extra_minima": {"O-O": [2.3]}, "in_reference": [], "soft": []}],
)  # fmt: skip
MODEL = {
    "bytes": 812_345, "format_version": 1, "model_id": "0123456789abcdef",
    "config": {"encoder": "painn", "num_layers": 3, "num_features": 64, "cutoff": 5.0},
    "provenance": {"recipe": "gfm-small.toml", "training": {"steps": 26000}, "versions": {"torch": "2.13.0"}},
    "uncertainty": [],
    "heads": [{
        "name": "xtb", "kind": "energy",
        "functional": "GFN2-xTB", "basis": "minimal", "code": "tblite", "labels": "semi-empirical",
        "dispersion": "included", "elements": ["H", "O"], "periodicity": ["molecule"], "charges": [0, 0],
        "reference_kind": "isolated-atom", "description": "Small molecules.", "test_errors": {"frames": 7},
        "training_data": [{"name": "file_a", "frames": 1234, "licence": "CC-BY-4.0", "citation": "Someone, J. 1 (2020)"}],
    }],
}  # fmt: skip


def test_numbers_are_right_and_words_left():
    header, rows = ["head", "MAE", "n"], [["a", "-", "1,200"], ["b", "3.1e-05", "-2"]]
    assert numeric_columns(header, rows) == [1, 2]
    assert markdown_table("T", header, rows).splitlines()[3] == "|---|---:|---:|"


def test_speed_tables_hold_what_was_measured():
    text = markdown(SPEED)
    assert "| gfm-calc eager, 1 thread | 612 |" in text
    assert "| CHGNet, 1 thread | - |" in text  # the job that failed
    assert "molecules of 8 atoms, batch 32" in text
    assert "| CHGNet, 1 thread | 1230 |" in text
    assert "412,525" in text
    assert (
        "`gfm bench speed --threads 1` on 2026-01-02; Some CPU, 2 cores; gfm-calc 0.1.0, torch 2.13.0; model id 0123456789abcdef."
        in text
    )


def test_accuracy_and_physics_tables():
    assert "| xtb | 7 | 3 | 12.3 | 500 | 500 | 95 | 100 | - | - |" in markdown(ACCURACY)
    assert "| file_a | xtb | 7 | 12.3 | - | 95 | - | - |" in markdown(ACCURACY)
    older = {**FIGURES, "forces_mae_mev_per_a": 190.0}
    both = markdown({**ACCURACY, "heads": [{**ACCURACY["heads"][0], "before": older}]})
    assert "| xtb | 12.3 | 12.3 | +0 % | 190 | 95 | -50 % |" in both and "forces on average -50 %" in both
    text = markdown(PHYSICS)
    assert "| Cu | xtb | 20 | 2 | 301 | -0.0012 | 0.021 |" in text
    assert "| water | xtb | yes | 9 | H-O 0.960 Å, H-O-H 104.5° | H-O 0.959 Å, H-O-H 107.2° |" in text
    assert "| slab | xtb | no: step limit | 500 | d12 2.000 Å | - |" in text


def test_summaries_leave_out_details():
    assert "file_a" not in markdown(ACCURACY, summary=True)
    assert "Pair curves" not in markdown(PHYSICS, summary=True)


def test_readme_takes_the_results_between_its_marks():
    text = with_results("head\n<!-- results -->\nold\n<!-- end of results -->\ntail\n", [ACCURACY, SPEED])
    assert text.startswith("head\n<!-- results -->") and text.endswith("<!-- end of results -->\ntail\n")
    assert "old" not in text and "12.3" in text and "612" in text
    assert with_results(text, [ACCURACY, SPEED]) == text
    some = with_results("<!-- results of speed, physics -->\n<!-- end of results -->", [ACCURACY, SPEED])
    assert "12.3" not in some and "612" in some and with_results(some, [ACCURACY, SPEED]) == some
    with pytest.raises(ConfigError, match="no tables for benchmark 'sped'.*speed"):
        with_results("<!-- results of sped -->\n<!-- end of results -->", [SPEED])
    for text in ("no marks", "<!-- end of results --><!-- results -->"):
        with pytest.raises(ConfigError, match="no place for the results"):
            with_results(text, [SPEED])


def test_a_glance_takes_what_the_results_have():
    """Ours and others, from whichever result of a benchmark has them; nothing where none has."""
    times = {"gfm-calc compiled": (10.0, 20.0), "chgnet": (70.0, 400.0)}
    dynamics = [
        {"contender": key, "system": system, "ms_per_step": value, "threads": 1}
        for key, values in times.items()
        for system, value in zip("ab", values)
    ]
    pairs = [
        {"model": "ours", "pairs": 9, "extra_minima": {"F-F": [2.0]}},
        {"model": "X", "pairs": 8, "extra_minima": {}},
    ]
    dynamics.append({"contender": "gfm-calc compiled", "system": "c", "ms_per_step": 1.0, "threads": 16})
    dynamics.append({"contender": "chgnet", "system": "c", "error": "it broke", "threads": 1})
    pairs.append({"model": "Y", "error": "it died"})
    found = glance([{**SPEED, "dynamics": dynamics}, PHYSICS, frame("physics", like_pairs=pairs), frame("hpo")])
    dimers, steps = found.rows
    assert dimers[1:] == ["1 of 9", "X 0 of 8"] and "`ours`" in dimers[0]
    assert "2 systems" in steps[0] and steps[1:] == ["10 to 20 ms", "CHGNet 7 to 20 times as long"]
    assert glance([]).rows == []
    (older,) = glance([frame("physics", like_pairs=pairs)], "other").rows
    assert older[0] == f"{dimers[0]} (earlier weights)"


def test_a_glance_stands_between_marks_of_its_own():
    page = "a\n<!-- glance -->\nold\n<!-- end of glance -->\n<!-- results of speed -->\n<!-- end of results -->\n"
    text = with_results(
        page, iter([SPEED, frame("physics", like_pairs=[{"model": "m", "pairs": 3, "extra_minima": {}}])])
    )
    assert "old" not in text and "| 0 of 3 |" in text and "612" in text
    assert "old" in with_results(page.replace("glance", "else"), [SPEED]) and "old" in with_results(page, [SPEED])
    assert {"accuracy", "stability"} < set(without_results(page, [SPEED]))


def test_figures_of_earlier_weights_are_said_to_be():
    older = {**SPEED, "provenance": {**SPEED["provenance"], "weights": "feed", "model_id": "cafe"}}
    assert "cafe **(earlier weights)**." in markdown(older, weights="beef")
    assert "earlier" not in markdown(older, weights="feed") and "earlier" not in markdown(older)
    none = {**SPEED, "provenance": {**SPEED["provenance"], "weights": "", "model_id": ""}}
    assert "earlier" not in markdown(none, weights="beef")


@pytest.mark.parametrize("result", [frame("speeed"), frame("speed"), frame("accuracy", heads=[{"head": "x"}])])
def test_results_without_their_parts_are_refused(result):
    with pytest.raises(ConfigError):
        tables(result)


def test_card_says_whose_data_and_what_it_cannot_do():
    card = model_card(MODEL, [ACCURACY, PHYSICS], name="gfm-small", weights="feed")
    assert "| file_a | `xtb` | 1,234 | CC-BY-4.0 | Someone, J. 1 (2020) |" in card
    assert "`xtb`: labels are semi-empirical calculations" in card
    assert "`xtb`: forces of held-out groups are hardly better than predicting zero" in card
    assert "energies of held-out groups are hardly better" not in card
    assert "relaxation of slab with `xtb` did not converge" in card
    assert "`xtb` (1 of 6, 0 of them by its labels' method, too)" in card
    assert "15 Å at most" in card
    assert "steps 26000" in card


def test_card_says_of_which_heads_errors_can_be_expected():
    silent = model_card(MODEL, [], name="gfm-small", weights="feed")
    assert (
        "No estimate of its own error comes with a prediction of this model" in silent
        and "uncertainty=True" not in silent
    )
    other = {**MODEL["heads"][0], "name": "dft"}
    about = {**MODEL, "heads": [*MODEL["heads"], other], "uncertainty": [{"head": "xtb"}]}
    card = model_card(about, [], name="gfm-small", weights="feed")
    assert "comes with a prediction of `dft`" in card and "Expected errors (`uncertainty=True`)" in card
    knowing = model_card({**MODEL, "uncertainty": [{"head": "xtb"}]}, [], name="gfm-small", weights="feed")
    assert "No estimate" not in knowing


def test_card_quotes_no_results_of_other_weights():
    with pytest.raises(ConfigError, match="measure again"):
        model_card(MODEL, [ACCURACY], name="gfm-small", weights="beef")
    finetuned = {**ACCURACY, "benchmark": "finetune"}  # what a card does not quote may be of any
    card = model_card(MODEL, [finetuned, SPEED], name="gfm-small", weights="beef")
    assert card.count("**(earlier weights)**") == 1 and "## Speed" in card  # other weights take as long
