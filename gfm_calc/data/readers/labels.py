"""From the frame as the file has it to a `Record`, by the keys, units and signs of a `Convention`."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from ...errors import InputFileError, InvalidStructureError
from .. import units as unit_tables
from ..schema import Record, checked
from . import names
from .conventions import Chooser, Convention, kind_of, listed
from .options import DEFAULTS, ReadOptions
from .raw import RawFrame, floats_from

_SAME = 1e-9  # relative: two labels under two names that agree are one label


class Labeller:
    """Turns the raw frames of one file into records.

    Args:
        options: what the user says about the file.

    Attributes: `conventions`: how many frames were understood in which way.
    """

    def __init__(self, options: ReadOptions = DEFAULTS):
        self.options = options
        self.conventions: Counter[Convention] = Counter()
        self._known: dict[tuple, Convention] = {}

    def record(self, raw: RawFrame) -> Record:
        """The record of one frame.

        Raises:
            InputFileError: a key or a unit that the file leaves open; the message shows the option.
            InvalidStructureError: an unsound structure or label.
        """
        convention = self.convention(raw)
        record = _apply(convention, raw, self.options)
        self.conventions[convention] += 1
        return record

    def convention(self, raw: RawFrame) -> Convention:
        """How the labels of a frame are understood; raises InputFileError as `record`."""
        kinds = tuple((key, kind_of(value)) for key, value in raw.scalars.items())
        shapes = tuple((key, np.shape(value)[1:]) for key, value in raw.arrays.items())
        signature = (kinds, shapes, id(raw.layout))
        convention = self._known.get(signature)
        if convention is None:
            convention = Chooser(raw, self.options).convention()
            self._known[signature] = convention
        return convention


def _apply(convention: Convention, raw: RawFrame, options: ReadOptions) -> Record:
    count = len(raw.atomic_numbers)
    scale = unit_tables.LENGTH[convention.length_unit]
    energy = _energy(convention, raw, options)
    forces = _forces(convention, raw, count)
    # Multiplying by 1.0 is exact, but copies.
    positions = raw.positions if scale == 1.0 else raw.positions * scale
    cell = raw.cell if scale == 1.0 else raw.cell * scale
    charge, spin = _charge(convention, raw, options), _spin(convention, raw, options)
    record = Record(
        atomic_numbers=raw.atomic_numbers,
        positions=positions,
        cell=cell,
        pbc=raw.pbc,
        energy=math.nan if energy is None else energy,
        forces=forces,
        stress=_stress(convention, raw, options, cell),
        **_property(convention, raw, count),
        charge=charge,
        spin=spin,
        group=_group(convention, raw, options),
        source=raw.source,
        frame=raw.frame,
    )
    return checked(record, energy_given=energy is not None, source=raw.path)


def _energy(convention: Convention, raw: RawFrame, options: ReadOptions) -> float | None:
    if not convention.energy_keys:
        return None
    value = _agreed("energy", convention.energy_keys, raw.scalars, (), raw)
    factor = unit_tables.ENERGY[convention.energy_unit]
    energy = float(value) if factor == 1.0 else float(value) * factor
    return energy * len(raw.atomic_numbers) if options.energy_per_atom else energy


def _forces(convention: Convention, raw: RawFrame, count: int) -> np.ndarray | None:
    if not convention.forces_keys:
        return None
    value = _agreed("forces", convention.forces_keys, raw.arrays, (count, 3), raw)
    factor = unit_tables.force_factor(str(convention.forces_unit)) * (-1.0 if convention.gradients else 1.0)
    return value if factor == 1.0 else value * factor


def _stress(convention: Convention, raw: RawFrame, options: ReadOptions, cell: np.ndarray) -> np.ndarray | None:
    if not convention.stress_keys:
        return None
    key = convention.stress_keys[0]
    size = np.size(raw.scalars[key])
    shape = (6,) if size == 6 else (3, 3)
    value = _agreed("stress", convention.stress_keys, raw.scalars, shape, raw)
    if shape == (6,):
        value = _from_six(value, options.stress_order or raw.layout.units.stress_order, raw)
    if not raw.pbc.any() and not np.any(value):
        return None  # writers fill in zeros for molecules
    unit, volume = str(convention.stress_unit), abs(float(np.linalg.det(cell)))
    if unit.startswith(unit_tables.VIRIAL) and volume == 0:
        raise InvalidStructureError(
            f"{key} is a virial, but the cell has no volume: set the cell, or --stress-key none",
            source=raw.path,
            frame=raw.frame,
        )
    factor = unit_tables.stress_factor(unit, volume)
    factor *= -1.0 if convention.stress_sign == "compression" else 1.0
    return value if factor == 1.0 else value * factor


def _property(convention: Convention, raw: RawFrame, count: int) -> dict[str, np.ndarray]:
    """The label of a property head: {"value": [k]} of the structure, or {"atom_values": [n, k]}; k is 1 or 3."""
    key = convention.property_key
    if key is None:
        return {}
    of_atoms = key in raw.arrays
    value = np.asarray(raw.arrays[key] if of_atoms else raw.scalars[key])
    value = value.astype(np.float64) if value.dtype.kind == "b" else value
    shape = (count,) if of_atoms else ()
    if (value.size == 3 * count and of_atoms) or (value.size == 3 and not of_atoms):
        return {"atom_values" if of_atoms else "value": floats_from(value, (*shape, 3), key, raw.path, raw.frame)}
    return {"atom_values" if of_atoms else "value": floats_from(value, (*shape, 1), key, raw.path, raw.frame)}


def _from_six(value: np.ndarray, order: str | None, raw: RawFrame) -> np.ndarray:
    if order is None and np.any(value[3:]):
        raise InputFileError(
            f"{raw.path}, frame {raw.frame}: the stress has six components and nothing says in which order: give "
            "--stress-order voigt (xx yy zz yz xz xy) or vasp (xx yy zz xy yz zx)"
        )
    if order == "vasp":
        value = value[[0, 1, 2, 4, 5, 3]]
    return voigt_6_to_full_3x3_stress(value)


def _agreed(what: str, keys: tuple[str, ...], where: Any, shape: tuple[int, ...], raw: RawFrame) -> np.ndarray:
    """The value under the first key, if those under the others are the same."""
    first = floats_from(where[keys[0]], shape, keys[0], raw.path, raw.frame)
    for key in keys[1:]:
        other = floats_from(where[key], shape, key, raw.path, raw.frame)
        if not np.allclose(first, other, rtol=_SAME, atol=0.0, equal_nan=True):
            shown = ", ".join(f"{k} {float(np.asarray(where[k]).reshape(-1)[0]):.8g}" for k in keys)
            hint = "; forces belong to free_energy" if "free_energy" in keys else ""
            raise InputFileError(
                f"{raw.path}, frame {raw.frame}: several keys may be the {what} and differ ({shown}{hint}): choose with "
                f"--{what}-key {keys[0]} or {key}"
            )
    return first


def _charge(convention: Convention, raw: RawFrame, options: ReadOptions) -> Any:
    return _said("charge", convention.charge_keys, raw) if convention.charge_keys else options.charge


def _spin(convention: Convention, raw: RawFrame, options: ReadOptions) -> Any:
    if not convention.spin_keys:
        return options.spin
    value = _said("spin", convention.spin_keys, raw)
    if options.spin_convention == "multiplicity" or not names.is_number(value):
        return value
    unpaired = float(np.asarray(value).reshape(())) * (2 if options.spin_convention == "S" else 1)
    return unpaired + 1


def _said(what: str, keys: tuple[str, ...], raw: RawFrame) -> Any:
    """The value under the first key; InputFileError where those under the others are not the same number."""
    if len(keys) > 1 and len({float(np.asarray(raw.scalars[key]).reshape(())) for key in keys}) > 1:
        reason = f"{listed(keys)} may all be the {what} and differ: choose with --{what}-key {keys[0]}"
        raise InputFileError(f"{raw.path}, frame {raw.frame}: {reason}")
    return raw.scalars[keys[0]]


def _group(convention: Convention, raw: RawFrame, options: ReadOptions) -> str:
    if options.group is not None:
        return options.group
    return str(raw.scalars[convention.group_key]) if convention.group_key is not None else raw.group
