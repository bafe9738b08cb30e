"""The folder of a screening: `screening.json` says what it holds, `chunks/` holds it, `claims/` who works on what.

`screening.json` is written once, before the first chunk, by whichever process comes first; it never changes.  Every chunk is
one sealed Parquet file (see `table`), written once; its name is its number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from gfm_calc.artifacts import canonical_json, canonical_json_or_corrupt, parse_json, sha256, write_once
from gfm_calc.config import from_mapping
from gfm_calc.errors import ConfigError, CorruptFileError, GFMError, UnsupportedVersionError, one_line
from gfm_calc.screening.claims import Claims
from gfm_calc.screening.settings import Settings
from gfm_calc.screening.table import about, unsealed

NAME, CHUNKS, CLAIMS = "screening.json", "chunks", "claims"
FORMAT_VERSION = 1
OUTPUTS = ("ranking.csv", "best.extxyz", "summary.html", "counts.json")
_WAIT = 0.2  # seconds between looks for what another process begins


class Folder:
    """A screening that has begun; see the module.

    Args:
        directory: holds `screening.json`.
        patience: of `Claims`; 0 for reading alone, without claims.

    Attributes: `settings`; `meta` (model, stream, elements); `digest` (of `screening.json`); `candidates` (of the whole
    stream); `first`, `last` (the range that is screened); `num_chunks`.

    Raises:
        CorruptFileError: missing or damaged.
        UnsupportedVersionError: of a newer gfm-calc.
    """

    def __init__(self, directory: Path, *, patience: float = 0.0):
        self.directory = directory
        self.meta = _checked(directory / NAME)
        self.settings = from_mapping(Settings, self.meta["settings"], str(directory / NAME))
        self.digest = self.meta["self_sha256"]
        self.candidates = int(self.meta["candidates"])
        self.first = self.settings.first
        self.last = self.candidates if self.settings.last is None else self.settings.last
        self.num_chunks = -(-(self.last - self.first) // self.settings.chunk)
        if patience:
            (directory / CHUNKS).mkdir(exist_ok=True)
            self.claims = Claims(directory / CLAIMS, patience=patience)

    def range_of(self, chunk: int) -> tuple[int, int]:
        """First candidate of a chunk, and the one after its last."""
        start = self.first + chunk * self.settings.chunk
        return start, min(start + self.settings.chunk, self.last)

    def path_of(self, chunk: int) -> Path:
        """Where a chunk is, or will be."""
        return self.directory / CHUNKS / f"{chunk:08d}.parquet"

    def is_done(self, chunk: int) -> bool:
        """Whether a chunk is there."""
        return self.path_of(chunk).exists()

    def read(self, chunk: int, columns: list[str] | None = None) -> Any:
        """The `pyarrow.Table` of a chunk, checked: its bytes, and that it has the rows that it should have.

        Raises:
            CorruptFileError: missing, damaged, or of another screening.
        """
        path = self.path_of(chunk)
        file = unsealed(path)
        said = about(file)
        if said.get("screening") != self.digest or said.get("chunk") != str(chunk):
            raise CorruptFileError(f"{path}: belongs to another screening or place: delete it")
        table = file.read(columns if columns is None else list(dict.fromkeys(["candidate", "head", *columns])))
        heads = list(self.settings.heads)
        expected = np.repeat(np.arange(*self.range_of(chunk)), len(heads))
        found = table.column("candidate").to_numpy()
        if not np.array_equal(found, expected) or table.column("head").to_pylist() != heads * (
            len(found) // len(heads)
        ):
            raise CorruptFileError(f"{path}: does not hold the rows of its candidates: delete it")
        return table

    def tables(self, columns: list[str] | None = None) -> Iterator[Any]:
        """Every chunk in order, see `read`.

        Raises:
            GFMError: chunks that are missing, or files that are no chunks of this screening.
        """
        missing = [chunk for chunk in range(self.num_chunks) if not self.is_done(chunk)]
        if missing:
            raise GFMError(
                f"{self.directory}: {len(missing)} of {self.num_chunks} chunks are missing (the first is {missing[0]}): "
                "give the same command again"
            )
        names = {self.path_of(chunk).name for chunk in range(self.num_chunks)}
        for path in (self.directory / CHUNKS).glob("*.parquet"):
            if path.name not in names:
                raise CorruptFileError(f"{path}: is no chunk of this screening: remove it, its rows would count twice")
        for chunk in range(self.num_chunks):
            yield self.read(chunk, columns)


def begin(
    directory: Path, settings: Settings, stream: Mapping[str, Any], make: Callable[[], Mapping[str, Any]], *,
    patience: float,
) -> Folder:  # fmt: skip
    """Begin a screening, or join one that has begun, which must be the same; any number of processes may call this.

    Args:
        stream: {"candidates": how many, "identity": of the stream, "elements_file": digest of what the user gave,
            "domain": digest of the statistics}.
        make: the rest of `screening.json`, for the process that begins ("model", "elements"); "model" is compared.

    Raises:
        ConfigError: the folder holds a screening of other settings, candidates or model.
        GFMError: it holds something else, or cannot be written.
    """
    if settings.last is not None and settings.last > stream["candidates"]:
        raise ConfigError(f"--range ends at {settings.last}, but there are {stream['candidates']} candidates")
    if settings.first >= stream["candidates"]:
        raise ConfigError(f"--range begins at {settings.first}, but there are {stream['candidates']} candidates")
    _refuse_foreign(directory)
    path = directory / NAME
    body = {"kind": "screening", "format_version": FORMAT_VERSION, "settings": asdict(settings), **stream}
    made: Mapping[str, Any] | None = None
    try:
        if not path.exists():
            with Claims(directory / CLAIMS, patience=patience) as claims:
                while not path.exists():
                    if not claims.take("begin"):
                        time.sleep(_WAIT)
                        continue
                    made = make()
                    complete = {**body, **made}
                    seal = sha256(canonical_json(complete))
                    write_once(path, canonical_json({**complete, "self_sha256": seal}))
        folder = Folder(directory, patience=patience)
    except OSError as error:
        raise GFMError(f"{directory}: cannot be written ({one_line(error)}); choose another folder") from error
    _refuse_changes(folder, parse_json(canonical_json(body), path))
    return folder


def _refuse_changes(folder: Folder, body: Mapping[str, Any]) -> None:
    there, now = folder.meta["settings"], body["settings"]
    changed = [f"{key} = {there.get(key)}, not {now[key]}" for key in now if there.get(key) != now[key]]
    if changed:
        raise ConfigError(
            f"{folder.directory}: holds a screening with {'; '.join(changed[:3])}: take the change back, or choose another "
            "folder"
        )
    if folder.meta["elements_file"] != body["elements_file"]:
        raise ConfigError(f"{folder.directory}: holds a screening with other --elements: choose another folder")
    if folder.meta.get("domain", "") != body.get("domain", ""):
        raise ConfigError(f"{folder.directory}: holds a screening with another --domain: choose another folder")
    if folder.meta["identity"] != body["identity"] or folder.candidates != body["candidates"]:
        raise ConfigError(f"{folder.directory}: holds a screening of other candidates: choose another folder")


def refuse_other_model(folder: Folder, model: Mapping[str, Any]) -> None:
    """ConfigError where the folder's rows are of another model."""
    if folder.meta["model"] != dict(model):
        there = folder.meta["model"]
        raise ConfigError(
            f"{folder.directory}: holds a screening with the weights {there.get('weights', '')[:12]} of {there.get('name')}, "
            f"not {model['weights'][:12]}: choose another folder"
        )


def _refuse_foreign(directory: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise GFMError(f"{directory}: is a file; give a folder")
    if not directory.exists() or (directory / NAME).exists():
        return
    if any(path.name not in (CLAIMS,) and not path.name.startswith(f".{NAME}.") for path in directory.iterdir()):
        raise GFMError(f"{directory}: holds other files; give a new or empty folder")


def _checked(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(f"{path}: cannot be read ({one_line(error)}): no folder of a screening") from error
    meta = parse_json(raw, path)
    if not isinstance(meta, dict) or meta.get("kind") != "screening":
        raise CorruptFileError(f"{path}: says nothing of a screening: damaged")
    body = {key: value for key, value in meta.items() if key != "self_sha256"}
    if meta.get("self_sha256") != sha256(canonical_json_or_corrupt(body, path)) or raw != canonical_json(meta):
        raise CorruptFileError(
            f"{path}: its checksum does not match: damaged, or edited by hand; begin in a new folder"
        )
    if meta.get("format_version") != FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"{path}: format {meta.get('format_version')} is not read by this gfm-calc: pip install --upgrade gfm-calc"
        )
    return meta
