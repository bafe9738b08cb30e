"""Run by test_hostile_files.py in a process of its own: open files under an audit hook, print what happened as JSON.

    python audited.py WARM HOSTILE

First everything in WARM (sound files) is opened, so that imports are done; then the hook is armed and everything in
HOSTILE is opened.  Printed: {"events": [[name, what]], "outcomes": {file: outcome}}.
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

EVENTS: list[list[str]] = []
ARMED = False
SCRATCH = os.path.realpath(tempfile.gettempdir())
HOSTILE = os.path.realpath(sys.argv[2])
FORBIDDEN = (
    "exec", "compile", "import", "code.__new__", "marshal.", "pickle.", "ctypes.", "subprocess.", "socket.", "os.system",
    "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.putenv", "os.chmod", "os.link", "os.symlink", "urllib.",
    "http.", "ftplib.", "webbrowser.", "sqlite3.enable_load_extension", "sqlite3.load_extension", "shelve.", "glob.",
)  # fmt: skip


def hook(event: str, arguments: tuple) -> None:
    if not ARMED:
        return
    if event.startswith(FORBIDDEN):
        EVENTS.append([event, repr(arguments)[:200]])
    elif event in ("open", "os.remove", "os.rename", "os.rmdir", "os.mkdir"):
        path = arguments[0]
        if isinstance(path, int):
            return
        full = os.path.realpath(os.fsdecode(path))
        writes = event != "open" or (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if not full.startswith(SCRATCH if writes else (SCRATCH, HOSTILE)):
            EVENTS.append([event, full])


def try_one(path: Path, tries) -> dict[str, str]:
    found = {}
    for name, function in tries.items():
        try:
            result = function(path)
            found[name] = f"fine: {type(result).__name__}"
        except Exception as error:
            found[name] = type(error).__name__
    return found


def main() -> None:
    global ARMED
    warnings.simplefilter("ignore")
    from gfm_calc import GFMCalculator
    from gfm_calc.checkpoint import describe, load_model, read_golden
    from gfm_calc.config import read_toml
    from gfm_calc.selfcheck import check_golden
    from gfm_calc.structures import read_frames

    model_tries = {
        "load": load_model, "describe": describe, "golden": lambda p: check_golden(load_model(p), read_golden(p)),
        "calculator": lambda p: GFMCalculator(p, head="only"),
    }  # fmt: skip
    file_tries = {"frames": lambda p: list(read_frames(p)), "toml": read_toml}
    outcomes: dict[str, dict[str, str]] = {}
    sys.addaudithook(hook)
    for armed, folder in ((False, sys.argv[1]), (True, sys.argv[2])):
        ARMED = armed
        for path in sorted(Path(folder).iterdir()):
            # twice when warm: some imports wait for a second call
            for _ in range(1 if armed else 2):
                outcomes[path.name] = try_one(path, model_tries if path.is_dir() else file_tries)
    ARMED = False
    print(json.dumps({"events": EVENTS, "outcomes": outcomes}))


if __name__ == "__main__":
    main()
