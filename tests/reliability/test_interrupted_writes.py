"""R10: an I/O error at the N-th call, for every N, or a kill at any moment: the old model or the new one, never a mix."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from support import ROOT, random_model

from gfm_calc import artifacts
from gfm_calc.checkpoint import load_model, open_model, save_model
from gfm_calc.errors import CorruptFileError, GFMError

CALLS = ("open", "write", "fsync", "replace")


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


@pytest.fixture(scope="module")
def models():
    return [random_model(seed=seed, elements=("H", "O"), heads=("only",)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def digests(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("digests")
    found = []
    for index, model in enumerate(models):
        save_model(model, folder / str(index))
        found.append(open_model(folder / str(index)).digest)
    return found


def number_of_calls(model, folder) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, None)
        save_model(model, folder)
    return disk.count


@pytest.mark.promise("R10")
@pytest.mark.parametrize("start", ["old model", "no model"])
def test_every_call_that_can_fail(tmp_path, models, digests, start, tally):
    old, new = models
    save_model(old, tmp_path / "count")
    calls = number_of_calls(new, tmp_path / "count")
    assert calls >= 6 * 6, "the calls are not counted"
    for fail_at in range(1, calls + 1):
        folder = tmp_path / str(fail_at)
        if start == "old model":
            save_model(old, folder)
        with pytest.MonkeyPatch.context() as patch:
            disk = FailingDisk(patch, fail_at)
            with pytest.raises(GFMError, match=r"could not be written \(.*No space left on device"):
                save_model(new, folder)
        assert disk.count >= fail_at
        try:
            found = open_model(folder).digest
            load_model(folder)
            tally.check(found in digests if start == "old model" else found == digests[1], f"call {fail_at}: {found}")
        except CorruptFileError as error:
            tally.check(start == "no model" and "readable manifest.json" in str(error), f"call {fail_at}: {error}")
        # The folder is not lost: the same save goes through when there is room again, and leaves nothing behind.
        save_model(new, folder)
        left = [path.name for path in folder.iterdir()]
        tally.check(open_model(folder).digest == digests[1] and len(left) == 6, f"call {fail_at}, again: {left}")


WRITER = """
import sys
from pathlib import Path
from gfm_calc.artifacts import commit, open_artifact
states = []
for source in sys.argv[2:]:
    artifact = open_artifact(Path(source), kind="model", newest_version=99)
    states.append(({name: artifact.read(name) for name in artifact.files}, artifact.format_version))
print("ready", flush=True)
while True:
    for state, version in states:
        commit(Path(sys.argv[1]), state, kind="model", format_version=version)
        print("committed", flush=True)
"""


def kill_while_saving(models, digests, tmp_path, tally, kills: int) -> None:
    for index, model in enumerate(models):
        save_model(model, tmp_path / f"source{index}")
    target = tmp_path / "target"
    save_model(models[0], target)
    seen = set()
    for number in range(kills):
        sources = [str(tmp_path / f"source{k}") for k in (0, 1)]
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target), *sources], stdout=subprocess.PIPE, cwd=ROOT
        )
        try:
            assert writer.stdout.readline() == b"ready\n"
            # Kills are counted from a commit, as a slow disk may take longer for one than any fixed wait.
            for _ in range(number % 3):
                assert writer.stdout.readline() == b"committed\n"
            time.sleep(0.001 + 0.013 * (number % 7))
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
            writer.stdout.close()
        load_model(target)
        digest = open_model(target).digest
        seen.add(digest)
        tally.check(digest in digests, f"kill {number}: {digest}")
    save_model(models[1], target)
    tally.check(len(list(target.iterdir())) == 6, "leftovers of the killed writers stay")
    assert len(seen) == 2 or kills < 10, "the kills never came between two states"


@pytest.mark.promise("R10")
def test_kill_in_mid_save(models, digests, tmp_path, tally):
    kill_while_saving(models, digests, tmp_path, tally, 10)


@pytest.mark.slow
@pytest.mark.promise("R10")
def test_many_kills_in_mid_save(models, digests, tmp_path, tally):
    kill_while_saving(models, digests, tmp_path, tally, 200)
