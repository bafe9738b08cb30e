"""Artifacts: what is committed is read back, what is not ours is not touched."""

import json
import os

import pytest

from gfm_calc import artifacts
from gfm_calc.artifacts import MANIFEST, canonical_json, commit, open_artifact, sha256, write_file
from gfm_calc.errors import CorruptFileError, GFMError, UnsupportedVersionError

FILES = {"config.json": b"{}\n", "weights.safetensors": bytes(range(256)) * 40, "empty.bin": b""}


def put(directory, files=FILES, version=1, kind="model"):
    commit(directory, files, kind=kind, format_version=version, meta={"note": "ä"})
    return open_artifact(directory, kind=kind, newest_version=version)


def reseal(directory, change):
    """Edit the manifest and give it a checksum that fits: what damage cannot do and an attacker can."""
    manifest = json.loads((directory / MANIFEST).read_bytes())
    change(manifest)
    body = {key: value for key, value in manifest.items() if key != "self_sha256"}
    manifest["self_sha256"] = sha256(canonical_json(body))
    (directory / MANIFEST).write_bytes(canonical_json(manifest))


def test_round_trip(tmp_path):
    artifact = put(tmp_path / "deep" / "er")
    assert {name: artifact.read(name) for name in artifact.files} == FILES
    assert artifact.meta == {"note": "ä"}
    assert artifact.read_json("config.json") == {}
    artifact.verify()


def test_digest_stands_for_the_content(tmp_path):
    first, second = put(tmp_path / "a"), put(tmp_path / "b")
    assert first.digest == second.digest
    assert put(tmp_path / "a", FILES | {"empty.bin": b"1"}).digest != first.digest


def test_a_new_state_sweeps_the_old_one_and_nothing_else(tmp_path):
    put(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "other-0123456789ab.json").write_text("mine too")
    (tmp_path / f".config-x.json.{os.getpid()}.tmp").write_text("left by a crash")
    put(tmp_path, {"config.json": b"[]\n"})
    listed = sorted(path.name for path in tmp_path.iterdir())
    assert "notes.txt" in listed and "other-0123456789ab.json" in listed
    assert sum(name.startswith("config-") for name in listed) == 1
    assert not [name for name in listed if name.endswith(".tmp")]
    assert open_artifact(tmp_path, kind="model", newest_version=1).read("config.json") == b"[]\n"


def test_foreign_directories_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(GFMError, match="holds other files"):
        put(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    put(tmp_path / "data", kind="dataset")
    with pytest.raises(GFMError, match="holds other files"):
        put(tmp_path / "data", kind="model")
    open_artifact(tmp_path / "data", kind="dataset", newest_version=1).verify()
    with pytest.raises(GFMError, match="is a file"):
        put(tmp_path / "thesis.tex")
    with pytest.raises(GFMError, match="could not be written"):
        put(tmp_path / "thesis.tex" / "below")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_cut_off_first_commit_can_be_repeated(tmp_path):
    put(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(CorruptFileError, match=r"has no readable manifest\.json"):
        open_artifact(tmp_path, kind="model", newest_version=1)
    put(tmp_path).verify()


def test_write_file_leaves_old_or_new(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_file(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_versions(tmp_path):
    put(tmp_path, version=3)
    assert open_artifact(tmp_path, kind="model", newest_version=5).format_version == 3
    with pytest.raises(UnsupportedVersionError, match="format 3 is newer than 2.*pip install --upgrade gfm-calc"):
        open_artifact(tmp_path, kind="model", newest_version=2)
    with pytest.raises(CorruptFileError, match="is a 'model', not a dataset"):
        open_artifact(tmp_path, kind="dataset", newest_version=2)


def test_an_edited_version_is_damage_not_news(tmp_path):
    put(tmp_path)
    path = tmp_path / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 9'))
    with pytest.raises(CorruptFileError, match="claims format 9"):
        open_artifact(tmp_path, kind="model", newest_version=1)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/b", "", ".hidden", "x" * 200, None, 3, "a\nb"])
def test_resealed_manifests_cannot_point_outside(tmp_path, name):
    put(tmp_path)
    reseal(tmp_path, lambda manifest: manifest["files"]["config.json"].update(file=name))
    with pytest.raises(CorruptFileError, match="table of files is damaged"):
        open_artifact(tmp_path, kind="model", newest_version=1)


@pytest.mark.parametrize(
    "change",
    [
        {"files": []}, {"files": {"a": 1}}, {"files": {"a": {}}}, {"meta": None}, {"format_version": 0},
        {"format_version": -1}, {"format_version": "1"}, {"format_version": None}, {"kind": None}, {"kind": ["model"]},
    ],
)  # fmt: skip
def test_resealed_nonsense(tmp_path, change):
    put(tmp_path)
    reseal(tmp_path, lambda manifest: manifest.update(change))
    with pytest.raises(CorruptFileError):
        open_artifact(tmp_path, kind="model", newest_version=1)


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"null", b"[]", b"{}", b"3", b"NaN", b"{", b"\xff\xfe\x00", b"[" * 200_000, b'{"a": 1e999}', b'"' + b"a" * 100,
        b"1" * 5000, b'{"self_sha256": "\\ud800"}', b" " * (1 << 20) + b"{}",
    ],
)  # fmt: skip
def test_what_is_no_manifest(tmp_path, raw):
    put(tmp_path)
    (tmp_path / MANIFEST).write_bytes(raw)
    with pytest.raises(CorruptFileError):
        open_artifact(tmp_path, kind="model", newest_version=1)


def test_special_files_do_not_hang(tmp_path):
    artifact = put(tmp_path)
    for path in (tmp_path / artifact.files["weights.safetensors"]["file"], tmp_path / MANIFEST):
        kept = path.read_bytes()
        path.unlink()
        os.mkfifo(path)
        with pytest.raises(CorruptFileError):
            open_artifact(tmp_path, kind="model", newest_version=1)
        path.unlink()
        path.write_bytes(kept)
    open_artifact(tmp_path, kind="model", newest_version=1).verify()


def test_damage_between_opening_and_reading(tmp_path):
    artifact = put(tmp_path)
    path = tmp_path / artifact.files["weights.safetensors"]["file"]
    path.write_bytes(b"x" * path.stat().st_size)
    with pytest.raises(CorruptFileError, match="checksum does not match"):
        artifact.read("weights.safetensors")
    path.unlink()
    with pytest.raises(CorruptFileError, match="cannot be read"):
        artifact.read("weights.safetensors")
    with pytest.raises(CorruptFileError, match="lists no golden"):
        artifact.read("golden.json")


def test_no_numbers_that_json_lacks():
    with pytest.raises(ValueError):
        canonical_json({"a": float("nan")})
    assert artifacts.parse_json(canonical_json({"ä": [0.1, 1e-300]}), None) == {"ä": [0.1, 1e-300]}
