"""Options that say how the labels of files are to be understood: one for each field of `ReadOptions`."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..data.readers import ReadOptions

# {field: (type, help)}; a flag where the type is bool.  The same fields as `ReadOptions`, which is heavy to import.
FIELDS: dict[str, tuple[type, str]] = {
    "energy_key": (str, "name of the energy in the file; none leaves it out"),
    "forces_key": (str, "of the forces"),
    "stress_key": (str, "of the stress"),
    "charge_key": (str, "of the total charge"),
    "spin_key": (str, "of the spin"),
    "group_key": (str, "of the group, whose structures stay on one side of a split"),
    "property_key": (str, "of a property of structures or atoms, instead of energy, forces and stress"),
    "energy_unit": (str, "eV, Ha, kcal/mol, ..."),
    "length_unit": (str, "A, bohr, nm"),
    "forces_unit": (str, "eV/A, Ha/bohr, ... (default: energy unit over length unit)"),
    "stress_unit": (str, "eV/A^3, GPa, kBar, ..., or virial:eV for a stress times volume"),
    "stress_sign": (str, "tension or compression: what a positive diagonal means"),
    "stress_order": (str, "of six components: voigt (xx yy zz yz xz xy) or vasp (xx yy zz xy yz zx)"),
    "forces_are_gradients": (bool, "the forces in the file are +dE/dr"),
    "energy_per_atom": (bool, "the energy in the file is divided by the number of atoms"),
    "spin_convention": (str, "multiplicity (2S+1), unpaired (2S) or S"),
    "charge": (int, "for every frame, where the file holds none"),
    "spin": (int, "for every frame, where the file holds none"),
    "group": (str, "for every frame"),
}


# --kind -> (kind of the head, whether it is a sum over atoms)
KINDS = {
    "energy": ("energy", True), "extensive": ("scalar", True), "intensive": ("scalar", False), "vector": ("vector", True),
    "class": ("class", False), "atom-scalar": ("atom_scalar", True), "atom-vector": ("atom_vector", True),
}  # fmt: skip


def add_read_options(parser: argparse.ArgumentParser) -> None:
    """--format, and --energy-key, --energy-unit, ..."""
    group = parser.add_argument_group("how labels are read")
    group.add_argument("--format", metavar="NAME", help="of the files (default: by name and content)")
    for name, (kind, text) in FIELDS.items():
        flags, dest = ["--" + name.replace("_", "-")], f"read_{name}"
        flags = ["--property", *flags] if name == "property_key" else flags
        if kind is bool:
            group.add_argument(*flags, dest=dest, action="store_true", default=None, help=text)
        else:
            group.add_argument(*flags, dest=dest, type=kind, metavar="X", help=text)


def read_options(args: argparse.Namespace, defaults: ReadOptions | None = None) -> ReadOptions:
    """The `ReadOptions` of the command line; what is not given there is as in `defaults`.

    Raises:
        ConfigError: a unit or choice that does not exist.
    """
    from ..data.readers import ReadOptions

    values: dict[str, Any] = {name: getattr(args, f"read_{name}") for name in FIELDS}
    given = {name: value for name, value in values.items() if value is not None}
    return dataclasses.replace(defaults or ReadOptions(), **given)


def add_property_kind(group: Any) -> None:
    """--kind and --unit of a property."""
    group.add_argument("--kind", choices=tuple(KINDS), default=None,
                       help="of the property: extensive (a sum over atoms), intensive (a mean), vector (a sum), class (0 or 1, "
                       "or false and true), atom-scalar, atom-vector")  # fmt: skip
    group.add_argument("--unit", metavar="TEXT", default="", help="of the property")


def property_values(args: argparse.Namespace) -> dict[str, Any]:
    """What the card of a property head says, from the command line; empty for energies.

    Raises:
        ConfigError: --property without --kind, or the other way round.
    """
    key, kind = args.read_property_key, args.kind
    if key is None:
        if kind in (None, "energy"):
            return {}
        raise ConfigError(f"--kind {kind} needs --property KEY, the name of the label in the files")
    if kind is None:
        raise ConfigError(f"--property {key} needs --kind: one of {', '.join(k for k in KINDS if k != 'energy')}")
    if kind == "energy":
        raise ConfigError(f"--property {key} is no energy: leave --property out, and give --energy-key {key}")
    of_head, extensive = KINDS[kind]
    return {"kind": of_head, "extensive": extensive, "quantity": key, "unit": args.unit or "unit of the labels"}
