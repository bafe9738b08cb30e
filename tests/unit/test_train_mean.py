"""The mean of models: of every weight, saved like any other; what has no mean is said."""

from dataclasses import replace

import pytest
import torch
from support import random_model

from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.train.mean import main


def saved(folder, name, **more):
    save_model(random_model(dtype=torch.float32, elements=("H", "O"), **more), folder / name)
    return str(folder / name)


def test_every_weight_is_the_mean(tmp_path, capsys):
    first, second = saved(tmp_path, "a"), str(tmp_path / "b")
    model = load_model(first)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor += 0.5
    save_model(model, second)
    assert main([first, second, "-o", str(tmp_path / "mean")]) == 0
    assert load_model(first).model_id in capsys.readouterr().out
    begin, mean = load_model(first).state_dict(), load_model(tmp_path / "mean")
    for name, tensor in mean.named_parameters():
        torch.testing.assert_close(tensor, begin[name] + 0.25)
    assert list(mean.specs) == list(model.specs) and mean.uncertainty is None


@pytest.mark.parametrize("part", ["scale", "landmarks.centres", "landmarks.output", "reference", "nonnegative"])
def test_properties_have_a_mean_where_they_begin_alike(tmp_path, capsys, part):
    """What they learn is relative to the fit that they begin at."""
    first, second = saved(tmp_path, "a", properties=True), str(tmp_path / "b")
    model = load_model(first)
    if part == "reference":
        model.specs["gap"].reference_energies["H"] = 3.0
    elif part == "nonnegative":
        model.specs["gap"] = replace(model.specs["gap"], nonnegative=True)
    else:
        with torch.no_grad():
            {**dict(model.properties[0].named_buffers()), **dict(model.properties[0].named_parameters())}[part].add_(
                0.5
            )
    save_model(model, second)
    ended = main([first, second, "-o", str(tmp_path / "mean")])
    assert ended == (part != "landmarks.output")
    assert ("begin at different fits" in capsys.readouterr().err) == bool(ended)


def test_what_has_no_mean(tmp_path, capsys):
    first = saved(tmp_path, "a")
    for others, said in (
        ([], "two models at least"),
        ([saved(tmp_path, "wide", num_features=24)], "different encoders or heads"),
        ([saved(tmp_path, "other", heads=("first", "fourth"))], "different encoders or heads"),
        ([str(tmp_path / "none")], "no model"),
    ):
        assert main([first, *others, "-o", str(tmp_path / "mean")]) == 1
        assert said in capsys.readouterr().err and not (tmp_path / "mean").exists()
