"""From what a user names to one stream: files, folders, datasets, and TOML files that say what is to be made.

[[candidates]]
kind = "substitution"            # also "perturbation", "random", "files"
prototypes = ["perovskite"]      # packaged, or files of structures
replace = { Sr = ["alkaline-earth"], Ti = ["transition"], O = ["O", "S"] }

A table [groups] gives names to lists of elements, for use in `replace` and `elements`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from gfm_calc.artifacts import MANIFEST
from gfm_calc.config import read_toml
from gfm_calc.errors import ConfigError, GFMError, InputFileError, did_you_mean, one_line
from gfm_calc.screening.files import Files, SingleFiles, Stored
from gfm_calc.screening.generators import Perturbations, RandomAtoms
from gfm_calc.screening.prototypes import PROTOTYPES, elements_of, prototype
from gfm_calc.screening.streams import Joined, Stream
from gfm_calc.screening.substitution import Substitutions


def open_streams(inputs: Sequence[Path], *, length_unit: str | None = None) -> Joined:
    """All candidates of the inputs, in order.

    Raises:
        GFMError: an input that is missing, that cannot be read, or that says what is impossible.
    """
    return Joined([part for path in inputs for part in _streams(path, length_unit)])


def _streams(path: Path, length_unit: str | None) -> list[Stream]:
    if path.is_dir():
        return [Stored(path) if (path / MANIFEST).exists() else SingleFiles(path)]
    if path.suffix.lower() != ".toml":
        return [Files(path, length_unit=length_unit)]
    table = read_toml(path)
    _refuse_unknown(table, ("candidates", "groups"), str(path))
    groups = table.get("groups", {})
    if not isinstance(groups, dict):
        raise ConfigError(f"{path}: write groups as [groups] with name = [elements, ...]")
    named = {name: elements_of(words, f"{path}: groups.{name}") for name, words in groups.items()}
    entries = table.get("candidates")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f"{path}: says nothing to make: write [[candidates]] with a kind")
    found: list[Stream] = []
    for number, entry in enumerate(entries):
        where = f"{path}: candidates {number}"
        kind = entry.pop("kind", None)
        if kind not in _KINDS:
            raise ConfigError(f"{where}: kind must be one of {', '.join(_KINDS)}{did_you_mean(kind, _KINDS)}")
        _name_groups(entry, named)
        try:
            found += _KINDS[kind](entry, path.parent, where)
        except ConfigError as error:
            raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from error
        except (TypeError, ValueError, AttributeError) as error:
            if isinstance(error, GFMError):
                raise
            raise ConfigError(f"{where}: {one_line(error)}") from error
    return found


def _name_groups(entry: dict[str, Any], named: Mapping[str, Sequence[str]]) -> None:
    """Put the elements of the user's groups in the places of their names."""

    def elements(words: Any) -> Any:
        several = [words] if isinstance(words, str) else words
        return [e for word in several for e in named.get(word, (word,))] if isinstance(several, list) else words

    if isinstance(entry.get("replace"), dict):
        entry["replace"] = {symbol: elements(words) for symbol, words in entry["replace"].items()}
    if "elements" in entry:
        entry["elements"] = elements(entry["elements"])


def _files(entry: Mapping[str, Any], folder: Path, where: str) -> list[Stream]:
    _refuse_unknown(entry, ("inputs", "length_unit"), where)
    found: list[Stream] = []
    for name in _listed(entry, "inputs", where):
        path = folder / name
        if path.suffix.lower() == ".toml":
            raise ConfigError(f"{where}: {name} is a TOML file: name it on the command line")
        found += _streams(path, entry.get("length_unit"))
    return found


def _perturbation(entry: Mapping[str, Any], folder: Path, where: str) -> list[Stream]:
    _refuse_unknown(entry, ("inputs", "length_unit", "copies", "rattle", "strain", "seed"), where)
    seeds = Joined(_files({key: entry[key] for key in ("inputs", "length_unit") if key in entry}, folder, where))
    how = {key: entry[key] for key in ("copies", "rattle", "strain", "seed") if key in entry}
    return [Perturbations(seeds, **how)]


def _random(entry: Mapping[str, Any], folder: Path, where: str) -> list[Stream]:
    _refuse_unknown(entry, [field.name for field in fields(RandomAtoms)], where)
    if "count" not in entry:
        raise ConfigError(f"{where}: how many? give a count")
    values = dict(entry)
    if "elements" in values:
        values["elements"] = elements_of(values["elements"], where)
    return [RandomAtoms(**values)]


def _substitution(entry: Mapping[str, Any], folder: Path, where: str) -> list[Stream]:
    _refuse_unknown(entry, ("prototypes", "replace", "balance", "distinct", "volume"), where)
    replace = entry.get("replace")
    if not isinstance(replace, dict) or not replace:
        raise ConfigError(f"{where}: give replace = {{ Symbol = [elements, ...] }}")
    lists = {symbol: elements_of(words, f"{where}: replace.{symbol}") for symbol, words in replace.items()}
    how = {key: entry[key] for key in ("balance", "distinct", "volume") if key in entry}
    found: list[Stream] = []
    for name in _listed(entry, "prototypes", where):
        if name in PROTOTYPES or not (folder / name).exists():
            found.append(Substitutions(name, prototype(name), lists, **how))
            continue
        file = Files(folder / name)
        for source, atoms in file.made(0, len(file)):
            if isinstance(atoms, GFMError):
                raise atoms
            found.append(Substitutions(source, atoms, lists, **how))
    return found


_KINDS: dict[str, Callable[[Mapping[str, Any], Path, str], list[Stream]]] = {
    "substitution": _substitution, "perturbation": _perturbation, "random": _random, "files": _files,
}  # fmt: skip


def _listed(entry: Mapping[str, Any], key: str, where: str) -> list[str]:
    found = entry.get(key)
    names = [found] if isinstance(found, str) else found
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise InputFileError(f"{where}: give {key} = [names, ...]")
    return names


def _refuse_unknown(entry: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in entry:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
