"""The one way files are committed and read back.

An artifact is a directory whose `manifest.json` lists every file with its size and SHA-256.  Data files carry a piece of
their digest in their name, so a new state is written beside the old one and becomes visible by one `rename` of the
manifest: a reader finds the old state or the new one, never a mix, whatever write, fsync or rename fails.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CorruptFileError, GFMError, UnsupportedVersionError, one_line

MANIFEST = "manifest.json"
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,120}")
_STORED = re.compile(r"([A-Za-z0-9_]+)-[0-9a-f]{12}\.[A-Za-z0-9.]+")
_ASIDE = re.compile(r"\..+\.[0-9]+\.tmp")
_MAX_MANIFEST_BYTES = 1 << 20


def sha256(data: bytes) -> str:
    """Hex SHA-256 of `data`."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys; refuses NaN and inf, which are not JSON."""
    return (json.dumps(value, sort_keys=True, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def sha256_of_file(path: Path) -> str:
    """Hex SHA-256 of a file of any size."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path`, flush it to the disk, then rename: `path` is old or new, never half written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_and_sync(aside, data)
        os.replace(aside, path)
    except BaseException:
        _unlink_quietly(aside)
        raise
    sync_path(path.parent)


def write_once(path: Path, data: bytes) -> bool:
    """`write_file` for a path that is never replaced: False, and nothing is changed, where it is there already.

    Of several processes that write at the same time, on any machines that share the disk, one wins.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.{os.getpid()}.tmp")
    try:
        _write_and_sync(aside, data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # a disk without links
            if path.exists():
                return False
            os.rename(aside, path)
    finally:
        _unlink_quietly(aside)
    sync_path(path.parent)
    return True


def move_file(path: Path, source: Path) -> None:
    """Flush the file `source` to the disk and rename it to `path`, on the same disk."""
    sync_path(source)
    os.replace(source, path)
    sync_path(path.parent)


def commit(
    directory: Path,
    files: Mapping[str, bytes | Path],
    *,
    kind: str,
    format_version: int,
    meta: Mapping[str, Any] | None = None,
) -> None:
    """Make `files` the content of the artifact `directory` in one step.

    Args:
        directory: created where it does not exist; an artifact of the same kind that is there is replaced.
        files: logical name (such as "weights.safetensors") -> content, or the path of a file that holds it, on the same
            disk as `directory`: it is moved, never read into memory.
        kind: what the artifact is ("model", ...); a directory of another kind, or one with foreign files, is refused.
        format_version: of the content; readers refuse newer ones.
        meta: small JSON values kept in the manifest.

    Raises:
        GFMError: the directory is not ours to replace, or the disk refused a write; the old state is intact.
    """
    directory = Path(directory)
    table = {}
    try:
        refuse_foreign(directory, kind)
        directory.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            table[name] = _store(directory, name, data)
        body = {"kind": kind, "format_version": format_version, "files": table, "meta": dict(meta or {})}
        manifest = {**body, "self_sha256": sha256(canonical_json(body))}
        write_file(directory / MANIFEST, canonical_json(manifest))
    except OSError as error:
        raise GFMError(
            f"{directory}: could not be written ({one_line(error)}); what was there before is intact"
        ) from error
    _sweep(directory, table)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An opened artifact: the manifest has been checked; each file is checked as it is read.

    Attributes: `directory`; `kind`; `format_version`; `files` (logical name -> {file, size, sha256}); `meta`; `digest`,
    the SHA-256 that stands for the whole content.
    """

    directory: Path
    kind: str
    format_version: int
    files: Mapping[str, Mapping[str, Any]]
    meta: Mapping[str, Any]
    digest: str

    def read(self, name: str) -> bytes:
        """The content of one file.

        Raises:
            CorruptFileError: missing, of the wrong size, or of the wrong checksum.
        """
        path = self.path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptFileError(f"{path}: cannot be read ({one_line(error)})") from error
        if sha256(data) != self.files[name]["sha256"]:
            raise CorruptFileError(f"{path}: its checksum does not match the manifest: damaged, fetch it again")
        return data

    def verify(self) -> None:
        """Read every file once; CorruptFileError for the first that is not what the manifest says."""
        for name, entry in self.files.items():
            path = self.path(name)
            try:
                found = sha256_of_file(path)
            except OSError as error:
                raise CorruptFileError(f"{path}: cannot be read ({one_line(error)})") from error
            if found != entry["sha256"]:
                raise CorruptFileError(f"{path}: its checksum does not match the manifest: damaged, fetch it again")

    def path(self, name: str) -> Path:
        """Where a file lies whose content the caller checks (one too large to be read at once).

        Raises:
            CorruptFileError: missing, or of the wrong size.
        """
        entry = self._entry(name)
        path = self.directory / entry["file"]
        try:
            size = path.stat().st_size
        except OSError as error:
            raise CorruptFileError(f"{path}: cannot be read ({one_line(error)})") from error
        if size != entry["size"]:
            raise CorruptFileError(
                f"{path}: is {size} bytes, its manifest says {entry['size']}: damaged, fetch it again"
            )
        return path

    def _entry(self, name: str) -> Mapping[str, Any]:
        if name not in self.files:
            raise CorruptFileError(f"{self.directory}: its manifest lists no {name}; fetch or save it again")
        return self.files[name]

    def read_json(self, name: str) -> Any:
        """`read`, parsed as JSON."""
        return parse_json(self.read(name), self.directory / self.files[name]["file"])


def open_artifact(directory: Path, *, kind: str, newest_version: int) -> Artifact:
    """Check the manifest of `directory` and the presence and size of every file that it lists.

    Raises:
        CorruptFileError: no manifest, a damaged one, or a listed file that is missing or of the wrong size.
        UnsupportedVersionError: sound, but of a newer format than `newest_version`.
    """
    directory = Path(directory)
    path = directory / MANIFEST
    if not directory.is_dir():
        raise CorruptFileError(f"{directory}: no such directory")
    try:
        if path.exists() and not path.is_file():
            raise CorruptFileError(f"{path}: is not a file: damaged")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise CorruptFileError(f"{path}: too large for a manifest: damaged")
        raw = path.read_bytes()
    except OSError as error:
        raise CorruptFileError(
            f"{directory}: has no readable {MANIFEST} ({one_line(error)}): not a gfm-calc {kind}"
        ) from error
    manifest = parse_json(raw, path)
    _check_manifest(manifest, path, kind, newest_version)
    if raw != canonical_json(manifest):
        raise CorruptFileError(f"{path}: is not written as gfm-calc writes it: damaged, or edited by hand")
    artifact = Artifact(
        directory=directory,
        kind=kind,
        format_version=manifest["format_version"],
        files=manifest["files"],
        meta=manifest["meta"],
        digest=manifest["self_sha256"],
    )
    for entry in artifact.files.values():
        stored = directory / entry["file"]
        if not stored.is_file() or stored.stat().st_size != entry["size"]:
            raise CorruptFileError(f"{stored}: missing or of the wrong size: damaged, fetch it again")
    return artifact


def read_json(path: Path) -> Any:
    """The JSON of a file of ours; CorruptFileError where it is not."""
    return parse_json(path.read_bytes(), path)


def parse_json(data: bytes, path: Path) -> Any:
    """JSON text -> value; CorruptFileError where it is not JSON."""
    try:
        return json.loads(data.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not valid JSON ({one_line(error)}): damaged") from error


def _check_manifest(manifest: Any, path: Path, kind: str, newest_version: int) -> None:
    if not isinstance(manifest, dict):
        raise CorruptFileError(f"{path}: not a manifest: damaged")
    version = manifest.get("format_version")
    newer = isinstance(version, int) and not isinstance(version, bool) and version > newest_version
    body = {key: value for key, value in manifest.items() if key != "self_sha256"}
    if manifest.get("self_sha256") != sha256(canonical_json_or_corrupt(body, path)):
        hint = f"claims format {version}, newer than {newest_version}, the newest read here, and " if newer else ""
        raise CorruptFileError(f"{path}: {hint}its own checksum does not match: damaged, or edited by hand")
    if manifest.get("kind") != kind:
        raise CorruptFileError(f"{path}: is a {manifest.get('kind')!r}, not a {kind}")
    if newer:
        raise UnsupportedVersionError(
            f"{path}: {kind} format {version} is newer than {newest_version}, the newest that this gfm-calc reads: "
            "pip install --upgrade gfm-calc"
        )
    files = manifest.get("files")
    sound = (
        isinstance(version, int) and version >= 1 and isinstance(files, dict) and isinstance(manifest.get("meta"), dict)
    )
    if not sound or not all(_sound_entry(entry) for entry in files.values()):
        raise CorruptFileError(f"{path}: its table of files is damaged")


def canonical_json_or_corrupt(value: Any, path: Path) -> bytes:
    """`canonical_json` for values that came from a file: what it cannot write was not written by us."""
    try:
        return canonical_json(value)
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: holds what JSON cannot ({one_line(error)}): damaged") from error


def _sound_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and set(entry) == {"file", "size", "sha256"}
        and isinstance(entry["file"], str)
        and _SAFE_NAME.fullmatch(entry["file"]) is not None
        and isinstance(entry["size"], int)
        and entry["size"] >= 0
        and isinstance(entry["sha256"], str)
    )


def _store(directory: Path, name: str, data: bytes | Path) -> dict[str, Any]:
    """Write or move one file into the directory; its entry for the manifest."""
    if isinstance(data, Path):
        digest, size = sha256_of_file(data), data.stat().st_size
        move_file(directory / _stored_name(name, digest), data)
    else:
        digest, size = sha256(data), len(data)
        write_file(directory / _stored_name(name, digest), data)
    return {"file": _stored_name(name, digest), "size": size, "sha256": digest}


def _stored_name(name: str, digest: str) -> str:
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{digest[:12]}{dot}{suffix}"


def refuse_foreign(directory: Path, kind: str) -> None:
    """GFMError where `directory` holds anything but an artifact of this kind, or the beginnings of a first one."""
    if directory.exists() and not directory.is_dir():
        raise GFMError(f"{directory}: is a file; give a directory")
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    path = directory / MANIFEST
    try:
        found = json.loads(path.read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        if all(_STORED.fullmatch(entry.name) or _ASIDE.fullmatch(entry.name) for entry in directory.iterdir()):
            return  # a first commit that was cut off
        found = None
    if found != kind:
        raise GFMError(f"{directory}: holds other files; give an empty or new directory so that nothing is overwritten")


def _sweep(directory: Path, table: Mapping[str, Mapping[str, Any]]) -> None:
    """Drop older states of the files in `table` and leftovers of interrupted writes; never anything else."""
    keep = {entry["file"] for entry in table.values()}
    ours = {name.partition(".")[0] for name in table}
    for path in directory.iterdir():
        stored = _STORED.fullmatch(path.name)
        if (stored and stored[1] in ours and path.name not in keep) or _ASIDE.fullmatch(path.name):
            _unlink_quietly(path)


def _write_and_sync(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_path(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink_quietly(path: Path) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
