"""What README and model card claim is what the committed results say; what the card does, on the weights that are packaged."""

import pytest
from support import ROOT

from gfm_calc.benchmarks.card import model_card
from gfm_calc.benchmarks.provenance import read_result, weights_id, write_result
from gfm_calc.benchmarks.report import markdown, with_results
from gfm_calc.checkpoint import PACKAGED, describe, list_models, open_model

FOLDER = ROOT / "benchmarks" / "results"
RESULTS = sorted(
    FOLDER.glob("*.json")
)  # of gfm-small, and of no weights; those of another model are in a folder of its name


@pytest.mark.parametrize("path", ["README.md", "benchmarks/RESULTS.md"])
def test_pages_quote_the_committed_results(path):
    text = (ROOT / path).read_text(encoding="utf-8")
    command = f"gfm bench report benchmarks/results/*.json --into {path}"
    weights = weights_id(open_model("gfm-small"))
    behind = f"{path} is behind the results, or the weights: {command}"
    assert with_results(text, map(read_result, RESULTS), weights=weights) == text, behind
    assert "<!-- results -->" in (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8"), "of all benchmarks"


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: path.stem)
def test_every_result_can_be_published(path, tmp_path):
    found = read_result(path)
    assert markdown(found)
    write_result(tmp_path / path.name, found)  # refuses local paths
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("name", list_models())
def test_model_card_is_made_from_head_cards_and_results(name):
    weights = weights_id(open_model(name))
    folder = FOLDER / name if name != "gfm-small" else FOLDER
    results = list(map(read_result, sorted(folder.glob("*.json"))))
    where = folder.relative_to(ROOT)
    command = f"gfm bench card --model {name} --results {where} -o gfm_calc/models/{name}/MODEL_CARD.md --overwrite"
    card = (PACKAGED / name / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert card == model_card(describe(name), results, name=name, weights=weights), f"the card is behind: {command}"
