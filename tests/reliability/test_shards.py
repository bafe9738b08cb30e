"""R3 and R10 on datasets: a damaged one is never read, and a build that fails leaves the old one or makes the new one."""

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from labelled import HEAD, RecordTask, difference, make_dataset, need_adios, records
from support import ROOT

from gfm_calc import artifacts
from gfm_calc.artifacts import canonical_json, sha256
from gfm_calc.data.build import build
from gfm_calc.data.store import open_dataset
from gfm_calc.errors import CorruptFileError, GFMError

CALLS = ("open", "write", "fsync", "replace")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    need_adios()
    folder = tmp_path_factory.mktemp("sound") / "data"
    make_dataset(folder, (60, 30), shard_atoms=200)
    return folder


# ---- R3: damage ----


def damage(path, chance: random.Random) -> str:
    """Do something to a file that changes it."""
    data = path.read_bytes()
    kind = chance.choice(["flip", "flip", "flip", "truncate", "extend", "zeros", "delete", "directory", "shuffle"])
    if kind == "delete":
        path.unlink()
    elif kind == "directory":
        path.unlink()
        path.mkdir()
    elif kind == "truncate":
        path.write_bytes(data[: chance.randrange(len(data))])
    elif kind == "extend":
        path.write_bytes(data + bytes(chance.randrange(1, 99)))
    else:
        place = chance.randrange(len(data))
        length = min(chance.choice([1, 1, 8, 4096]), len(data) - place)
        part = {
            "flip": bytes([data[place] ^ (1 << chance.randrange(8))]) + data[place + 1 : place + length],
            "zeros": bytes(length),
            "shuffle": bytes(chance.sample(data[place : place + length], length)),
        }[kind]
        changed = data[:place] + part + data[place + length :]
        if changed == data:
            changed = bytes([data[0] ^ 255]) + data[1:]
        path.write_bytes(changed)
    return f"{kind} of {path.name}"


def read_all(folder) -> list:
    """Every structure, by both ways of reading."""
    dataset = open_dataset(folder)
    found = [dataset.record(index) for index in range(len(dataset))]
    dataset.read(range(len(dataset)), names=True)
    dataset.atom_counts()
    return found


def try_damages(sound, tmp_path, tally, count: int) -> None:
    expected = read_all(sound)
    files = sorted(path for path in sound.rglob("*") if path.is_file())
    chance = random.Random(11)
    for number in range(count):
        folder = tmp_path / "damaged"
        shutil.copytree(sound, folder)
        target = folder / files[number % len(files)].relative_to(sound)
        what = damage(target, chance)
        # ADIOS2's own metadata is not what we read, so the numbers stay right; verifying finds the damage all the same.
        adios_only = target.name in ("md.0", "md.idx", "mmd.0")
        try:
            found = read_all(folder)
            tally.check(adios_only and not any(map(difference, found, expected)), f"{what}: read")
            open_dataset(folder).verify()
            tally.check(False, f"{what}: verified")
        except CorruptFileError as error:
            tally.check("\n" not in str(error) and "damaged" in str(error).lower(), f"{what}: {error}")
        except Exception as error:
            tally.check(False, f"{what}: {error!r}")
        shutil.rmtree(folder)


@pytest.mark.promise("R3")
def test_damaged_datasets(sound, tmp_path, tally):
    try_damages(sound, tmp_path, tally, 200)


@pytest.mark.slow
@pytest.mark.promise("R3")
def test_many_damaged_datasets(sound, tmp_path, tally):
    try_damages(sound, tmp_path, tally, 10_000)


@pytest.mark.promise("R3")
@pytest.mark.parametrize("what", ["truncate", "overwrite", "delete"])
def test_damage_while_a_dataset_is_open(sound, tmp_path, what):
    folder = tmp_path / "data"
    shutil.copytree(sound, folder)
    dataset = open_dataset(folder)
    dataset.record(0)
    for path in folder.rglob("data.0"):
        if what == "truncate":
            os.truncate(path, 10)
        elif what == "overwrite":
            path.write_bytes(bytes(path.stat().st_size))
        else:
            path.unlink()
    with pytest.raises(CorruptFileError):
        dataset.read(range(len(dataset)))


def reseal(folder, change) -> None:
    """Edit the table of a dataset and give everything checksums that fit: what damage cannot do and an attacker can."""
    import json

    manifest = json.loads((folder / "manifest.json").read_bytes())
    entry = manifest["files"]["dataset.json"]
    path = folder / entry["file"]
    table = json.loads(path.read_bytes())
    change(table)
    data = canonical_json(table)
    path.write_bytes(data)
    entry |= {"size": len(data), "sha256": sha256(data)}
    body = {key: value for key, value in manifest.items() if key != "self_sha256"}
    (folder / "manifest.json").write_bytes(canonical_json({**body, "self_sha256": sha256(canonical_json(body))}))


HOSTILE = {
    "offset beyond the end": lambda t: t["shards"][0]["columns"]["positions"].update(offset=10**9),
    "negative offset": lambda t: t["shards"][0]["columns"]["positions"].update(offset=-8),
    "another type": lambda t: t["shards"][0]["columns"]["positions"].update(dtype="|O8"),
    "huge shape": lambda t: t["shards"][0]["columns"]["positions"].update(shape=[10**12, 3], rows=10**12),
    "no columns": lambda t: t["shards"][0].update(columns={}),
    "a column is missing": lambda t: t["shards"][0]["columns"].pop("energy"),
    "more structures": lambda t: t["shards"][0].update(structures=10**6),
    "negative structures": lambda t: t["shards"][0].update(structures=-1),
    "a path outside": lambda t: t["shards"][0].update(name="../other"),
    "an absolute path": lambda t: t["shards"][0].update(name="/etc"),
    "no shards": lambda t: t.pop("shards"),
    "shards are a number": lambda t: t.update(shards=3),
    "an unknown key": lambda t: t["shards"][0].update(hook="os.system"),
    "a head that is none": lambda t: t.update(head={"name": "X Y"}),
    "files are missing": lambda t: t["shards"][0]["files"].pop("md.0"),
}


@pytest.mark.promise("R3")
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_tables(sound, tmp_path, what):
    folder = tmp_path / "data"
    shutil.copytree(sound, folder)
    reseal(folder, lambda table: None)
    assert len(read_all(folder)) == 90
    reseal(folder, HOSTILE[what])
    with pytest.raises(CorruptFileError):
        read_all(folder)


# ---- R10: errors of the disk, and kills ----


class FailingDisk:
    """os.open, write, fsync and replace, of which the N-th call fails; write puts half of its bytes on the disk first."""

    def __init__(self, monkeypatch, fail_at: int | None):
        self.count, self.fail_at = 0, fail_at
        for name in CALLS:
            monkeypatch.setattr(artifacts.os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, real):
        def call(*args, **options):
            self.count += 1
            if self.count == self.fail_at:
                if name == "write":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        return call


@pytest.mark.promise("R10")
@pytest.mark.parametrize("start", ["nothing", "append", "overwrite"])
def test_every_call_that_can_fail(tmp_path, start, tally):
    need_adios()
    old, new = RecordTask(count=9, seed=1), RecordTask(count=14, seed=2)
    options = {"processes": 0, "shard_atoms": 60, "append": start == "append", "overwrite": start == "overwrite"}

    def prepared(folder):
        if start != "nothing":
            build(folder, [old], HEAD, processes=0, shard_atoms=60)
        return folder

    with pytest.MonkeyPatch.context() as patch:
        folder = prepared(tmp_path / "count")
        disk = FailingDisk(patch, None)
        wanted = build(folder, [new], HEAD, **options).digest
    before = None if start == "nothing" else open_dataset(prepared(tmp_path / "before")).digest
    assert disk.count > 30, "the calls are not counted"
    for fail_at in range(1, disk.count + 1):
        folder = prepared(tmp_path / str(fail_at))
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, fail_at)
            try:
                build(folder, [new], HEAD, **options)
            except GFMError as error:
                tally.check("No space left" in str(error) and "\n" not in str(error), f"call {fail_at}: {error}")
        try:
            found = open_dataset(folder)
            found.verify()
            read_all(folder)
            tally.check(found.digest in (before, wanted), f"call {fail_at}: a mix")
            done = found.digest == wanted
        except CorruptFileError as error:
            tally.check(start == "nothing" and "readable manifest.json" in str(error), f"call {fail_at}: {error}")
            done = False
        if not done:  # the same command again, when there is room
            tally.check(build(folder, [new], HEAD, **options).digest == wanted, f"call {fail_at}: again")
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            tally.check(not left, f"call {fail_at}: left {left}")
        shutil.rmtree(folder)


def limited_build(folder, limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    build(folder, [RecordTask(count=60, seed=3)], HEAD, processes=0)


@pytest.mark.promise("R10")
def test_a_full_disk_while_adios_writes(tmp_path, tally):
    """ADIOS2 may end the process then, so it is not this one; what it left does not become a dataset."""
    need_adios()
    code = "import sys; from test_shards import limited_build; limited_build(sys.argv[1], int(sys.argv[2]))"
    path = os.pathsep.join(str(ROOT / part) for part in ("", "tests", "tests/reliability"))
    for limit in (50, 1000, 12_000):
        folder = tmp_path / str(limit)
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder), str(limit)], capture_output=True, text=True, timeout=120,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        tally.check(done.returncode != 0, f"{limit} bytes: no error")
        with pytest.raises(CorruptFileError):
            open_dataset(folder)
        dataset = build(folder, [RecordTask(count=60, seed=3)], HEAD, processes=0)
        tally.check(not any(map(difference, read_all(folder), records(60, 3))), f"{limit} bytes: other numbers")
        dataset.verify()


WRITER = """
import sys
import adios2
from pathlib import Path
from labelled import HEAD, RecordTask
from gfm_calc.data.build import build
print("ready", flush=True)
number = 0
while True:
    number += 1
    build(Path(sys.argv[1]), [RecordTask(count=40, seed=number % 2)], HEAD, processes=0, shard_atoms=60, overwrite=True)
"""


def kill_while_building(tmp_path, tally, kills: int) -> None:
    need_adios()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    folder = tmp_path / "data"
    build(folder, [RecordTask(count=40, seed=0)], HEAD, processes=0, shard_atoms=60)
    seen = set()
    for number in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
        )
        try:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.1 + 0.037 * (number % 11))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        dataset = open_dataset(folder)
        dataset.verify()
        first = dataset.record(0).energy
        which = [seed for seed in (0, 1) if np.array_equal(records(1, seed)[0].energy, first, equal_nan=True)]
        tally.check(len(dataset) == 40 and len(which) == 1, f"kill {number}")
        seen.update(which)
        tally.check(not any(map(difference, read_all(folder), records(40, which[0]))), f"kill {number}: other numbers")
    assert len(seen) == 2 or kills < 10, "the kills never came between two states"


@pytest.mark.promise("R10")
def test_kill_in_mid_build(tmp_path, tally):
    kill_while_building(tmp_path, tally, 5)


@pytest.mark.slow
@pytest.mark.promise("R10")
def test_many_kills_in_mid_build(tmp_path, tally):
    kill_while_building(tmp_path, tally, 200)
