"""R4: files made to run code, under an audit hook, in a process of their own: nothing is run, imported or opened outside."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from support import ROOT, random_model

from gfm_calc import artifacts
from gfm_calc.artifacts import MANIFEST, canonical_json, sha256
from gfm_calc.checkpoint import open_model, save_model


class Bomb:
    """Unpickling it runs a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def model_files(directory: Path) -> dict[str, bytes]:
    artifact = open_model(directory)
    return {name: artifact.read(name) for name in artifact.files}


def hostile_models(folder: Path, sound: Path, marker: Path) -> None:
    """Directories whose checksums all fit."""
    bomb = pickle.dumps(Bomb(marker))
    torch.save({"energy_stack.hidden": Bomb(marker)}, folder / "saved.pt")
    archive = (folder / "saved.pt").read_bytes()
    objects = {"dtype": "O", "shape": [], "data_offsets": [0, 0]}
    header = json.dumps({"__metadata__": {"format": "pt", "__reduce__": "os.system"}, "a": objects})
    own_code = f"__import__('os').system('touch {marker}')"
    files = model_files(sound)
    config, heads = json.loads(files["config.json"]), json.loads(files["heads.json"])
    cases = {
        "pickle-as-weights": {"weights.safetensors": bomb},
        "pickle-as-config": {"config.json": bomb},
        "torch-save-as-weights": {"weights.safetensors": archive},
        "npy-with-objects": {"weights.safetensors": npy_of_objects(folder, marker)},
        "safetensors-of-objects": {"weights.safetensors": len(header).to_bytes(8, "little") + header.encode()},
        "encoder-as-code": {"config.json": canonical_json(config | {"encoder": own_code})},
        "encoder-as-import": {"config.json": canonical_json(config | {"encoder": "os.system"})},
        "head-with-class": {"heads.json": canonical_json([heads[0] | {"__class__": "os.system"}])},
        "head-kind-as-code": {"heads.json": canonical_json([heads[0] | {"kind": own_code}])},
        "yaml-tag": {"config.json": b"!!python/object/apply:os.system ['touch " + str(marker).encode() + b"']"},
        "golden-with-objtype": {"golden.json": canonical_json({"structures": [{"__ase_objtype__": "cell"}], "predictions": {}})},
        "golden-huge-index": {"golden.json": canonical_json({"structures": [], "predictions": {"only": {own_code: {}}}})},
        "provenance-as-code": {"provenance.json": canonical_json({"recipe": own_code})},
    }  # fmt: skip
    for name, changed in cases.items():
        artifacts.commit(folder / name, files | changed, kind="model", format_version=1)
    (folder / "saved.pt").unlink()
    outside = {"points-outside": "../../secret.json", "points-to-root": "/etc/passwd", "points-to-device": "/dev/zero"}
    for name, target in outside.items():
        artifacts.commit(folder / name, files, kind="model", format_version=1)
        manifest = json.loads((folder / name / MANIFEST).read_bytes())
        manifest["files"]["config.json"]["file"] = target
        body = {key: value for key, value in manifest.items() if key != "self_sha256"}
        manifest["self_sha256"] = sha256(canonical_json(body))
        (folder / name / MANIFEST).write_bytes(canonical_json(manifest))


def npy_of_objects(folder: Path, marker: Path) -> bytes:
    array = np.empty(1, dtype=object)
    array[0] = Bomb(marker)
    np.save(folder / "objects.npy", array, allow_pickle=True)
    raw = (folder / "objects.npy").read_bytes()
    (folder / "objects.npy").unlink()
    return raw


def hostile_structures(folder: Path, marker: Path) -> None:
    bomb, own_code = pickle.dumps(Bomb(marker)), f"__import__('os').system('touch {marker}')"
    water = "3\n{} \nO 0 0 0\nH 0 0 1\nH 0 1 0\n"
    suffixes = "traj xyz extxyz json db cif cfg pdb gen xsf py pckl npz".split()
    for name in ("POSCAR", *(f"a.{suffix}" for suffix in suffixes)):
        (folder / f"pickle-{name}").write_bytes(bomb)
    (folder / "code.py").write_text(f"from ase import Atoms\n{own_code}\natoms = Atoms('H')\n")
    comments = {
        "charge-as-code": f'Properties=species:S:1:pos:R:3 charge="{own_code}"',
        "json-as-code": f'Properties=species:S:1:pos:R:3 charge="_JSON [\\"{own_code}\\"]"',
        "properties-as-code": f"Properties={own_code}:S:1:pos:R:3",
        "lattice-as-code": f'Lattice="{own_code} 0 0 0 1 0 0 0 1" Properties=species:S:1:pos:R:3',
        "calculator-as-code": f"Properties=species:S:1:pos:R:3 calculator={own_code.replace(' ', '')}",
    }
    for name, comment in comments.items():
        (folder / f"{name}.extxyz").write_text(water.format(comment))
    row = {"numbers": [1], "positions": {"__ase_objtype__": "os.system", "x": own_code}}
    (folder / "objtype.json").write_text(json.dumps({"1": row, "ids": [1], "nextid": 2}))
    entity = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
    (folder / "entities.xml").write_text(f'<?xml version="1.0"?>{entity}<modeling>&b;</modeling>')
    (folder / "recipe.toml").write_text(f'[model]\nencoder = "{own_code}"\n')


@pytest.mark.promise("R4")
def test_nothing_is_run(tmp_path, tally):
    marker = tmp_path / "the-bomb-went-off"
    warm, hostile, scratch = (tmp_path / name for name in ("warm", "hostile", "scratch"))
    for folder in (warm, hostile, scratch):
        folder.mkdir()
    model = random_model(heads=("only",), elements=("H", "O"))
    save_model(model, warm / "model")
    for name in (
        "a.xyz",
        "a.extxyz",
        "a.traj",
        "a.json",
        "a.cif",
        "POSCAR",
        "a.cfg",
        "a.pdb",
        "a.gen",
        "a.xsf",
        "a.db",
    ):
        atoms = molecule("H2O", vacuum=3.0, pbc=True)
        ase.io.write(warm / name, atoms, format={"POSCAR": "vasp", "a.pdb": "proteindatabank"}.get(name))
        # the readers of damaged files import more than those of sound ones
        (warm / f"damaged-{name}").write_bytes(b"\x80\x04" + os.urandom(64))
    for name in ("a.py", "a.xml", "a.npz", "a.pckl"):
        (warm / name).write_bytes(b"<?xml version='1.0'?><modeling></modeling>")
    (warm / "a.toml").write_text("a = 1")
    (warm / "b.toml").write_text("a = ")
    (tmp_path / "secret.json").write_text("{}")
    hostile_models(hostile, warm / "model", marker)
    hostile_structures(hostile, marker)
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("audited.py")), str(warm), str(hostile)],
        cwd=ROOT, capture_output=True, text=True, timeout=300, env=os.environ | {"TMPDIR": str(scratch), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    report = json.loads(ran.stdout.splitlines()[-1])
    assert report["outcomes"]["model"] == {
        "load": "fine: GFMModel", "describe": "fine: dict", "golden": "fine: list", "calculator": "fine: GFMCalculator",
    }  # fmt: skip
    assert report["outcomes"]["a.extxyz"]["frames"] == "fine: list"
    expected = {
        "CorruptFileError",
        "InputFileError",
        "UnsupportedVersionError",
        "HeadError",
        "fine: list",
        "fine: dict",
    }
    for path in hostile.iterdir():
        found = report["outcomes"][path.name]
        tally.check(not marker.exists(), f"{path.name}: the bomb went off")
        if path.is_dir():
            harmless = path.name == "provenance-as-code"  # text is text
            loaded = found["load"] == "fine: GFMModel"
            only_golden = path.name.startswith("golden-")
            tally.check(
                loaded if harmless or only_golden else found["load"] == "CorruptFileError", f"{path.name}: {found}"
            )
        else:
            tally.check(set(found.values()) <= expected, f"{path.name}: {found}")
    tally.check(not report["events"], report["events"])


@pytest.mark.promise("R4")
def test_the_hook_sees_what_it_should(tmp_path, tally):
    """A hook that sees nothing would pass everything."""
    programs = [
        "pickle.loads(b'cos\\nsystem\\n.')",
        "__import__('colorsys')",
        "eval('1+1')",
        "open('/etc/passwd')",
        "os.system('true')",
    ]
    for program in programs:
        code = (
            f"import sys, os, pickle; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
            f"sys.argv = ['x', '.', {str(tmp_path)!r}]; import audited; sys.addaudithook(audited.hook)\n"
            f"audited.ARMED = True\n{program}\naudited.ARMED = False; print(audited.EVENTS)"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        tally.check(ran.stdout.strip() != "[]", program)
