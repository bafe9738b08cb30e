"""What substitution knows by name: prototypes, groups of elements, and the oxidation states that elements take."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ase import Atoms
from ase.build import bulk
from ase.data import chemical_symbols
from ase.spacegroup import crystal

from gfm_calc.errors import ConfigError, did_you_mean

# Oxidation states that are common in solids (Greenwood, Earnshaw, Chemistry of the Elements, 2nd ed., 1997).
_STATES = """
H 1 -1; Li 1; Be 2; B 3; C 4 -4; N -3 3 5; O -2; F -1; Na 1; Mg 2; Al 3; Si 4 -4; P 5 3 -3; S -2 4 6; Cl -1;
K 1; Ca 2; Sc 3; Ti 4 3 2; V 5 4 3 2; Cr 3 2 6; Mn 2 3 4; Fe 3 2; Co 2 3; Ni 2 3; Cu 2 1; Zn 2; Ga 3;
Ge 4 2 -4; As 5 3 -3; Se -2 4; Br -1; Rb 1; Sr 2; Y 3; Zr 4; Nb 5 4; Mo 6 4; Tc 7 4; Ru 4 3; Rh 3; Pd 2 4;
Ag 1; Cd 2; In 3 1; Sn 4 2; Sb 5 3 -3; Te -2 4 6; I -1 5; Cs 1; Ba 2; La 3; Ce 4 3; Pr 3; Nd 3; Pm 3; Sm 3 2;
Eu 3 2; Gd 3; Tb 3 4; Dy 3; Ho 3; Er 3; Tm 3; Yb 3 2; Lu 3; Hf 4; Ta 5; W 6 4; Re 7 4; Os 4; Ir 4 3; Pt 4 2;
Au 3 1; Hg 2; Tl 1 3; Pb 2 4; Bi 3 5; Po 4; Ra 2; Ac 3; Th 4; Pa 5; U 6 4; Np 5; Pu 4
"""
STATES: dict[str, tuple[int, ...]] = {
    symbol: tuple(map(int, states)) for symbol, *states in (entry.split() for entry in _STATES.split(";"))
}

# Å, mostly six-fold coordinated and in the first of the states above; those of `ANIONS` as anions (Shannon,
# DOI 10.1107/S0567739476001551; P and As: what yttrium leaves in YP and YAs).
_RADII = """
Li 0.76; Be 0.45; B 0.27; C 0.16; N 1.46; O 1.40; F 1.33; Na 1.02; Mg 0.72; Al 0.535; Si 0.40; P 1.93; S 1.84;
Cl 1.81; K 1.38; Ca 1.00; Sc 0.745; Ti 0.605; V 0.54; Cr 0.615; Mn 0.83; Fe 0.645; Co 0.745; Ni 0.69; Cu 0.73;
Zn 0.74; Ga 0.62; Ge 0.53; As 1.99; Se 1.98; Br 1.96; Rb 1.52; Sr 1.18; Y 0.90; Zr 0.72; Nb 0.64; Mo 0.59;
Tc 0.56; Ru 0.62; Rh 0.665; Pd 0.86; Ag 1.15; Cd 0.95; In 0.80; Sn 0.69; Sb 0.60; Te 2.21; I 2.20; Cs 1.67;
Ba 1.35; La 1.032; Ce 0.87; Pr 0.99; Nd 0.983; Pm 0.97; Sm 0.958; Eu 0.947; Gd 0.938; Tb 0.923; Dy 0.912;
Ho 0.901; Er 0.89; Tm 0.88; Yb 0.868; Lu 0.861; Hf 0.71; Ta 0.64; W 0.60; Re 0.53; Os 0.63; Ir 0.625; Pt 0.625;
Au 0.85; Hg 1.02; Tl 1.50; Pb 1.19; Bi 1.03; Po 0.94; Ra 1.48; Ac 1.12; Th 0.94; Pa 0.78; U 0.73; Np 0.75;
Pu 0.86
"""
IONIC_RADII: dict[str, float] = {
    symbol: float(radius) for symbol, radius in (entry.split() for entry in _RADII.split(";"))
}  # fmt: skip
ANIONS = ("N", "P", "As", "O", "S", "Se", "Te", "F", "Cl", "Br", "I")


def _range(first: str, last: str) -> tuple[str, ...]:
    return tuple(chemical_symbols[chemical_symbols.index(first) : chemical_symbols.index(last) + 1])


GROUPS: dict[str, tuple[str, ...]] = {
    "alkali": ("Li", "Na", "K", "Rb", "Cs"),
    "alkaline-earth": ("Be", "Mg", "Ca", "Sr", "Ba"),
    "transition": (*_range("Sc", "Zn"), *_range("Y", "Cd"), *_range("Hf", "Hg")),
    "lanthanides": _range("La", "Lu"),
    "pnictogens": ("N", "P", "As", "Sb", "Bi"),
    "chalcogens": ("O", "S", "Se", "Te"),
    "halogens": ("F", "Cl", "Br", "I"),
    "cations": tuple(symbol for symbol, states in STATES.items() if states[0] > 0 and symbol != "H"),
    "anions": ANIONS,
}


def _cubic(symbols: str, positions: Iterable[tuple[float, float, float]], a: float, centred: bool = False) -> Atoms:
    """A cubic crystal, in the primitive cell of its face-centred lattice where it has one."""
    cell = [[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]] if centred else [a, a, a]
    atoms = Atoms(symbols, positions=[[a * x for x in position] for position in positions], cell=cell, pbc=True)
    atoms.wrap()
    return atoms


def _rutile() -> Atoms:
    u = 0.305
    sites = [(0, 0, 0), (0.5, 0.5, 0.5), (u, u, 0), (1 - u, 1 - u, 0), (0.5 + u, 0.5 - u, 0.5), (0.5 - u, 0.5 + u, 0.5)]
    return Atoms("Ti2O4", scaled_positions=sites, cell=[4.594, 4.594, 2.959], pbc=True)


def _elpasolite() -> Atoms:
    """K2NaAlF6: A2 B M X6."""
    x = 0.22
    anions = [(x, 0, 0), (-x, 0, 0), (0, x, 0), (0, -x, 0), (0, 0, x), (0, 0, -x)]
    sites = [(0.25, 0.25, 0.25), (0.75, 0.75, 0.75), (0.5, 0.5, 0.5), (0, 0, 0), *anions]
    return _cubic("K2NaAlF6", sites, 8.12, centred=True)


def _hexahalide() -> Atoms:
    """K2PtCl6, a double perovskite without one of its cations: A2 M X6."""
    x = 0.24
    anions = [(x, 0, 0), (-x, 0, 0), (0, x, 0), (0, -x, 0), (0, 0, x), (0, 0, -x)]
    return _cubic("K2PtCl6", [(0.25, 0.25, 0.25), (0.75, 0.75, 0.75), (0, 0, 0), *anions], 9.75, centred=True)


def _primitive(
    symbols: list[str], sites: list[tuple[float, float, float]], group: int, a: float, c: float, setting: int = 1
):
    """The primitive cell of a cubic or tetragonal crystal."""
    atoms = crystal(
        symbols, sites, spacegroup=group, setting=setting, cellpar=[a, a, c, 90, 90, 90], primitive_cell=True
    )
    return Atoms(atoms.symbols, positions=atoms.positions, cell=atoms.cell, pbc=True)


def _spinel() -> Atoms:
    """MgAl2O4."""
    return _primitive(["Mg", "Al", "O"], [(0.125,) * 3, (0.5,) * 3, (0.2624,) * 3], 227, 8.08, 8.08, setting=2)


def _chalcopyrite() -> Atoms:
    """CuFeS2."""
    return _primitive(["Cu", "Fe", "S"], [(0, 0, 0), (0, 0, 0.5), (0.257, 0.25, 0.125)], 122, 5.289, 10.423)


def _kesterite() -> Atoms:
    """Cu2ZnSnS4: A2 B M X4."""
    cations = [(0, 0, 0), (0, 0.5, 0.25), (0, 0.5, 0.75), (0, 0, 0.5)]
    return _primitive(["Cu", "Cu", "Zn", "Sn", "S"], [*cations, (0.756, 0.7566, 0.8722)], 82, 5.427, 10.871)


_PEROVSKITE = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
_HEUSLER = [(0, 0, 0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5), (0.75, 0.75, 0.75)]
PROTOTYPES: dict[str, Callable[[], Atoms]] = {
    "rocksalt": lambda: bulk("NaCl", "rocksalt", a=5.64),
    "cesiumchloride": lambda: bulk("CsCl", "cesiumchloride", a=4.12),
    "zincblende": lambda: bulk("ZnS", "zincblende", a=5.41),
    "wurtzite": lambda: bulk("ZnO", "wurtzite", a=3.25, c=5.207),
    "fluorite": lambda: bulk("CaF2", "fluorite", a=5.463),
    "rutile": _rutile,
    "perovskite": lambda: _cubic("SrTiO3", _PEROVSKITE, 3.905),
    "half-heusler": lambda: _cubic("TiNiSn", _HEUSLER[:3], 5.93, centred=True),
    "heusler": lambda: _cubic("AlCuMnCu", _HEUSLER, 5.95, centred=True),
    "elpasolite": _elpasolite,
    "hexahalide": _hexahalide,
    "spinel": _spinel,
    "chalcopyrite": _chalcopyrite,
    "kesterite": _kesterite,
}


def prototype(name: str) -> Atoms:
    """A packaged prototype, with the elements of its best-known compound.

    Raises:
        ConfigError: none of that name.
    """
    if name not in PROTOTYPES:
        raise ConfigError(
            f"no prototype {name!r}{did_you_mean(name, PROTOTYPES)}; packaged are {', '.join(PROTOTYPES)}"
        )
    return PROTOTYPES[name]()


def elements_of(words: Any, where: str) -> tuple[str, ...]:
    """Symbols from symbols and names of `GROUPS`, each once, in order.

    Raises:
        ConfigError: a word that is neither, or nothing at all.
    """
    found: dict[str, None] = {}
    for word in [words] if isinstance(words, str) else words:
        if word not in GROUPS and word not in chemical_symbols[1:]:
            raise ConfigError(
                f"{where}: {word!r} is no element and no group{did_you_mean(word, GROUPS)}; groups: {', '.join(GROUPS)}"
            )
        found |= dict.fromkeys(GROUPS.get(word, (word,)))
    if not found:
        raise ConfigError(f"{where}: an empty list of elements")
    return tuple(found)
