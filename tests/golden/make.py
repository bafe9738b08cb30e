"""Write tests/golden/model-vN for the current format N: run once when the format moves, then commit.

python tests/golden/make.py
"""

import json
import sys
from pathlib import Path

import torch

GOLDEN = Path(__file__).resolve().parent
sys.path[:0] = [str(GOLDEN.parent.parent), str(GOLDEN.parent), str(GOLDEN.parent / "reliability")]


def main() -> None:
    from support import predict
    from test_golden_files import golden_model, golden_structures

    from gfm_calc.checkpoint import FORMAT_VERSION, load_model, save_model
    from gfm_calc.selfcheck import probe_structures

    directory = GOLDEN / f"model-v{FORMAT_VERSION}"
    if directory.exists():
        sys.exit(f"{directory} is there: a released format does not change; raise checkpoint.FORMAT_VERSION first")
    save_model(golden_model(), directory)
    model = load_model(directory, dtype=torch.float64)
    energies = {h: [predict(model, a, h).energy.item() for a in probe_structures()[:2]] for h in model.energy_heads}
    (GOLDEN / "energies.json").write_text(json.dumps(energies, indent=1) + "\n")
    errors = [predict(model, a, "second", uncertainty=True) for a in probe_structures()[:2]]
    wanted = {"energy": [e.energy_uncertainty.item() for e in errors],
              "forces": [e.forces_uncertainty.sum().item() for e in errors]}  # fmt: skip
    errors = [predict(model, a, "gap", uncertainty=True) for a in probe_structures()[:2]]
    wanted["gap"] = [e.value_uncertainty.item() for e in errors]
    (GOLDEN / "uncertainties.json").write_text(json.dumps(wanted, indent=1) + "\n")
    values = {
        h: [predict(model, a, h).value.flatten().tolist() for a in golden_structures(model.specs[h])]
        for h in model.property_heads
    }
    (GOLDEN / "properties.json").write_text(json.dumps(values, indent=1) + "\n")


if __name__ == "__main__":
    main()
