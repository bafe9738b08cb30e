"""R3: a damaged model gives CorruptFileError before a tensor is used; never a hang, a crash or a wrong number."""

import json
import random
import shutil

import pytest
from support import random_model

from gfm_calc import checkpoint
from gfm_calc.checkpoint import load_model, save_model
from gfm_calc.errors import CorruptFileError


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sound") / "model"
    save_model(random_model(elements=("H", "C", "O")), directory)
    return directory


@pytest.fixture
def no_tensor_is_used(monkeypatch):
    """Loading must stop before the weights reach a model."""
    used = []

    class Watched(checkpoint.GFMModel):
        def load_state_dict(self, *args, **options):
            used.append(True)
            return super().load_state_dict(*args, **options)

    monkeypatch.setattr(checkpoint, "GFMModel", Watched)
    return used


def damage(directory, draw: random.Random) -> str:
    """Damage a model in one of the ways in which disks, copies and people do; what was done."""
    files = sorted(path for path in directory.iterdir())
    path = draw.choice(files)
    raw = path.read_bytes()
    kind = draw.choice(list(KINDS))
    return f"{kind}: {path.name.split('-')[0]} {KINDS[kind](draw, path, raw, files)}"


def flip(draw, path, raw, files):
    place, mask = draw.randrange(len(raw)), draw.randrange(1, 256)
    path.write_bytes(raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :])
    return f"byte {place} ^ {mask}"


def flip_one_bit(draw, path, raw, files):
    place, mask = draw.randrange(len(raw)), 1 << draw.randrange(8)
    path.write_bytes(raw[:place] + bytes([raw[place] ^ mask]) + raw[place + 1 :])
    return f"byte {place} ^ {mask}"


def truncate(draw, path, raw, files):
    length = draw.choice([0, 1, len(raw) - 1, draw.randrange(len(raw))])
    path.write_bytes(raw[:length])
    return f"to {length}"


def extend(draw, path, raw, files):
    more = draw.choice([b"\n", b"\0", b" " * 4096, raw])
    path.write_bytes(raw + more)
    return f"by {len(more)}"


def delete(draw, path, raw, files):
    path.unlink()
    return ""


def swap(draw, path, raw, files):
    other = draw.choice([file for file in files if file != path])
    path.write_bytes(other.read_bytes())
    other.write_bytes(raw)
    return f"with {other.name.split('-')[0]}"


def zero_a_block(draw, path, raw, files):
    start = draw.randrange(len(raw))
    length = min(512, len(raw) - start)
    if not any(raw[start : start + length]):
        return flip(draw, path, raw, files)
    path.write_bytes(raw[:start] + bytes(length) + raw[start + length :])
    return f"from {start}"


def insert(draw, path, raw, files):
    place = draw.randrange(len(raw))
    path.write_bytes(raw[:place] + bytes([draw.randrange(256)]) + raw[place:])
    return f"at {place}"


def become_a_directory(draw, path, raw, files):
    path.unlink()
    path.mkdir()
    return ""


def become_a_dangling_link(draw, path, raw, files):
    path.unlink()
    path.symlink_to(path.parent / "nowhere")
    return ""


def rename(draw, path, raw, files):
    path.rename(path.with_name("x" + path.name))
    return ""


def edit_the_manifest(draw, path, raw, files):
    manifest_path = path.parent / "manifest.json"
    manifest = json.loads(manifest_path.read_bytes())
    entry = draw.choice(list(manifest["files"].values()))
    change = draw.choice(["version", "size", "sha256", "file", "kind", "meta", "entry", "checksum", "spaces"])
    if change == "version":
        manifest["format_version"] = draw.choice([0, 2, 99, "1", None, 1.0, True])
    elif change == "size":
        entry["size"] += draw.choice([-1, 1, 10**12])
    elif change == "sha256":
        entry["sha256"] = "0" * 64
    elif change == "file":
        entry["file"] = draw.choice([file.name for file in files] + ["../manifest.json", "/dev/zero"])
        if manifest == json.loads(manifest_path.read_bytes()):
            entry["file"] = "elsewhere"
    elif change == "kind":
        manifest["kind"] = "dataset"
    elif change == "meta":
        manifest["meta"]["more"] = 1
    elif change == "entry":
        del manifest["files"][draw.choice(list(manifest["files"]))]
    elif change == "checksum":
        manifest["self_sha256"] = "f" * 64
    text = json.dumps(manifest, indent=None if change == "spaces" else 1, sort_keys=True)
    manifest_path.write_text(text)
    return change


KINDS = {
    function.__name__: function
    for function in (
        flip, flip_one_bit, truncate, extend, delete, swap, zero_a_block, insert, become_a_directory,
        become_a_dangling_link, rename, edit_the_manifest,
    )
}  # fmt: skip


def try_damages(sound, folder, count: int, tally, used) -> None:
    for seed in range(count):
        copy = folder / "copy"
        shutil.copytree(sound, copy)
        what = damage(copy, random.Random(seed))
        try:
            load_model(copy)
            tally.check(False, f"{seed} {what}: loaded")
        except CorruptFileError as error:
            fine = "\n" not in str(error) and len(str(error)) < 1000 and not used
            tally.check(fine, f"{seed} {what}: {error!r}, weights used: {bool(used)}")
        except Exception as error:
            tally.check(False, f"{seed} {what}: {error!r}")
        used.clear()
        shutil.rmtree(copy)


@pytest.mark.promise("R3")
def test_damages(sound, tmp_path, tally, no_tensor_is_used):
    try_damages(sound, tmp_path, 300, tally, no_tensor_is_used)


@pytest.mark.slow
@pytest.mark.promise("R3")
def test_many_damages(sound, tmp_path, tally, no_tensor_is_used):
    try_damages(sound, tmp_path, 10_000, tally, no_tensor_is_used)


@pytest.mark.promise("R3")
def test_every_byte_of_a_manifest(sound, tmp_path, tally):
    """The file that vouches for the others: each of its bytes, changed into a space, a digit and a tab."""
    copy = tmp_path / "copy"
    shutil.copytree(sound, copy)
    path = copy / "manifest.json"
    raw = path.read_bytes()
    for place in range(len(raw)):
        byte = b" 7\t"[place % 3]
        if raw[place] == byte:
            continue
        path.write_bytes(raw[:place] + bytes([byte]) + raw[place + 1 :])
        try:
            checkpoint.open_model(copy)
            tally.check(False, f"byte {place}")
        except CorruptFileError:
            tally.check(True, "")


def test_the_sound_copy_loads(sound, tmp_path):
    """Otherwise the tests above would pass for a wrong reason."""
    shutil.copytree(sound, tmp_path / "copy")
    assert load_model(tmp_path / "copy").model_id == load_model(sound).model_id
