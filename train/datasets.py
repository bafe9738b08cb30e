"""Where the data of a run are: one dataset, or a folder of them."""

from __future__ import annotations

from pathlib import Path

from gfm_calc.artifacts import MANIFEST
from gfm_calc.data.store import Dataset, open_dataset
from gfm_calc.errors import ConfigError


def find_datasets(path: str) -> list[Dataset]:
    """The dataset at `path`, or those in its sub-folders, by name of the head.

    Raises:
        ConfigError: none, or two of one head.
    """
    folder = Path(path).expanduser()
    if not path:
        raise ConfigError(
            "the recipe names no data: --set data.path=DIR, a dataset of gfm data build or a folder of them"
        )
    if not folder.is_dir():
        raise ConfigError(f"data.path: {folder}: no such directory")
    places = [folder] if (folder / MANIFEST).exists() else sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    if not places:
        raise ConfigError(f"data.path: {folder}: holds no dataset; make one with gfm data build")
    found: dict[str, Dataset] = {}
    for place in places:
        dataset = open_dataset(place)
        name = dataset.head.name
        if name in found:
            raise ConfigError(
                f"data.path: {found[name].directory} and {place} both are of head {name}: append one to the other"
            )
        found[name] = dataset
    return [found[name] for name in sorted(found)]
