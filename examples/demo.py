"""What gfm-calc is for, in a minute or two: relax, heat, compare, on the packaged model.

    python examples/demo.py -o demo-output

Writes trajectories (.traj and .extxyz, for `ase gui` or Ovito), pictures (.png) and a short summary on stdout.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import add_adsorbate, bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.io import Trajectory, read, write

from gfm_calc import GFMCalculator, GFMError
from gfm_calc.commands.eos import energy_of_volume, fit_birch_murnaghan
from gfm_calc.commands.md import Dynamics, prepare
from gfm_calc.commands.plots import BLUE, COLOURS, ORANGE, draw_eos, draw_md, draw_structures, picture
from gfm_calc.commands.relax import Relaxation, relax

HERE = Path(__file__).resolve().parent
MOLECULES, CRYSTALS, SURFACES = "gfn2-xtb", "distilled-7net-l3i5", "rpbe-vasp"  # heads: levels of theory
MEASURED = {"NaCl": 5.640, "Cu": 3.615}  # Å, lattice constants at room temperature


def main() -> None:
    parser = argparse.ArgumentParser(description="Relax, heat and compare real structures with a packaged model.")
    parser.add_argument("-o", "--output", type=Path, default=Path("demo-output"), help="folder (default: %(default)s)")
    parser.add_argument("--model", default="gfm-small", help="packaged name or directory (default: %(default)s)")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    aspirin = relax_molecules(args.model, args.output)
    heat(aspirin, args.model, args.output)
    relax_crystals(args.model, args.output)
    relax_surface(args.model, args.output)
    compare(args.model, args.output)
    print(f"\nall in {time.perf_counter() - started:.0f} s; trajectories and pictures are in {args.output}/")


def relax_molecules(model: str, out: Path) -> Atoms:
    """Ethanol and aspirin to the nearest minimum; gives back aspirin."""
    print(f"molecules, head {MOLECULES}")
    calc = GFMCalculator(model, head=MOLECULES)
    traces = {}
    for atoms in (molecule("CH3CH2OH"), read(HERE / "aspirin.xyz")):
        name = atoms.info.get("name", "ethanol")
        before = atoms.copy()
        atoms.calc = calc
        traces[name], result = traced(atoms, Relaxation(fmax=0.02, steps=1000), out / f"{name}-relax.traj")
        write(out / f"{name}.extxyz", atoms)
        moved = np.linalg.norm(atoms.positions - before.positions, axis=1).max()
        print(f"  {name}: {describe(result)}, largest move {moved:.2f} Å")
    with picture(out / "relaxations.png") as axes:
        for (name, energies), colour in zip(traces.items(), (ORANGE, BLUE)):
            axes.semilogy(1e3 * (np.array(energies) - min(energies)) + 0.1, color=colour, label=name)
        axes.set(xlabel="step", ylabel="energy above the minimum + 0.1 (meV)", title="Relaxation with FIRE")
        axes.legend()
    draw_structures(out / "aspirin.png", {"as built": turned(before, atoms), "relaxed": turned(atoms, atoms)})
    return atoms


def heat(atoms: Atoms, model: str, out: Path, *, temperature: float = 400.0, steps: int = 2000) -> None:
    """Langevin dynamics of aspirin, with a frame every 10 steps."""
    atoms = atoms.copy()
    atoms.calc = GFMCalculator(model, head=MOLECULES)
    how = Dynamics(ensemble="nvt", temperature=temperature, time_step=0.5, friction=0.02, seed=1)
    dynamics = prepare(atoms, how)
    names = ("time_fs", "potential_eV", "total_eV", "temperature_K")
    rows = []

    def record() -> None:
        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        rows.append((dynamics.nsteps * how.time_step, potential, potential + kinetic, atoms.get_temperature()))

    started = time.perf_counter()
    with Trajectory(out / "aspirin-md.traj", "w", atoms) as trajectory:
        dynamics.attach(record, interval=10)
        dynamics.attach(trajectory.write, interval=10)
        dynamics.run(steps)
    log = {name: np.array(column) for name, column in zip(names, zip(*rows))}
    draw_md(out / "aspirin-md.png", log, f"Aspirin, Langevin, {temperature:.0f} K")
    mean = log["temperature_K"][len(rows) // 4 :].mean()
    speed = 1e3 * (time.perf_counter() - started) / steps
    print(f"  aspirin, {steps * how.time_step:.0f} fs at {temperature:.0f} K: mean {mean:.0f} K, {speed:.1f} ms a step")


def relax_crystals(model: str, out: Path) -> None:
    """NaCl and Cu with their cells, from lattice constants 4 % off; equation of state of Cu."""
    print(f"crystals, head {CRYSTALS}")
    for name, atoms in (
        ("NaCl", bulk("NaCl", "rocksalt", a=1.04 * MEASURED["NaCl"], cubic=True)),
        ("Cu", bulk("Cu", a=0.96 * MEASURED["Cu"], cubic=True)),
    ):
        atoms.calc = GFMCalculator(model, head=CRYSTALS, dtype="float64")
        _, result = traced(atoms, Relaxation(cell=True, fmax=0.002), out / f"{name}-relax.traj")
        write(out / f"{name}.extxyz", atoms)
        found = atoms.cell.lengths().mean()
        off = 100 * (found / MEASURED[name] - 1)
        print(f"  {name}: {describe(result)}, a = {found:.3f} Å (measured {MEASURED[name]:.3f}: {off:+.1f} %)")
    volumes, energies = energy_of_volume(atoms)
    fit = fit_birch_murnaghan(volumes, energies)
    draw_eos(out / "Cu-eos.png", volumes, energies, fit, f"Cu, {CRYSTALS}")
    print(f"  Cu, equation of state: B0 = {fit.bulk_modulus:.0f} GPa (measured 140)")


def relax_surface(model: str, out: Path) -> None:
    """CO on Pt(111), the two lower layers held."""
    print(f"surface, head {SURFACES}")
    slab = fcc111("Pt", (2, 2, 4), a=3.99, vacuum=8.0, periodic=True)
    add_adsorbate(slab, molecule("CO"), 2.0, "ontop", mol_index=1)  # carbon down
    slab.info.clear()
    slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < slab.positions[:, 2].min() + 3.0))
    before = slab.copy()
    slab.calc = GFMCalculator(model, head=SURFACES)
    _, result = traced(slab, Relaxation(fmax=0.05), out / "CO-Pt111-relax.traj")
    write(out / "CO-Pt111.extxyz", slab)
    carbon = next(atom.index for atom in slab if atom.symbol == "C")
    oxygen = next(atom.index for atom in slab if atom.symbol == "O")
    metal = [atom.index for atom in slab if atom.symbol == "Pt"]
    nearest = slab.get_distances(carbon, metal, mic=True).min()
    bond = slab.get_distance(carbon, oxygen)
    print(f"  CO on Pt(111): {describe(result)}, C-O {bond:.3f} Å, Pt-C {nearest:.3f} Å")
    draw_structures(out / "CO-Pt111.png", {"as built": from_the_side(before), "relaxed": from_the_side(slab)})


def compare(model: str, out: Path) -> None:
    """Every head that knows ethanol, in one encoder pass."""
    calc = GFMCalculator(model, head=MOLECULES)
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    found = calc.compare_heads(atoms)
    print(f"ethanol (rattled), {len(found.energies)} heads in one pass; {len(found.refused)} do not know it")
    largest = {head: np.linalg.norm(forces, axis=1) for head, forces in found.forces.items()}
    for head in found.energies:
        spec = calc.heads[head]
        exact = head in found.comparable
        atomisation = f"atomisation energy {found.atomisation_energies[head]:.2f} eV, " if exact else ""
        print(f"  {head} ({spec.functional}): {atomisation}largest force {largest[head].max():.2f} eV/Å")
    with picture(out / "heads.png", width=7.5) as axes:
        places = np.arange(len(atoms))
        share = 0.8 / len(largest)
        for k, (head, sizes) in enumerate(largest.items()):
            axes.bar(places + (k - (len(largest) - 1) / 2) * share, sizes, share, color=COLOURS[k % 7], label=head)
        axes.set_xticks(places, [f"{atom.symbol}{atom.index}" for atom in atoms])
        axes.set(ylabel="force on the atom (eV/Å)", title="Rattled ethanol: one structure, every level of theory")
        axes.legend(fontsize=8)


def traced(atoms: Atoms, how: Relaxation, path: Path):
    """Relax `atoms` with every step in a trajectory; the energies on the way, and the result."""
    energies = []
    with Trajectory(path, "w", atoms) as trajectory:

        def observe(step: int) -> None:
            energies.append(atoms.get_potential_energy())
            trajectory.write()

        return energies, relax(atoms, how, observe)


def describe(result) -> str:
    """A relaxation in a few words."""
    state = "relaxed" if result.converged else "NOT relaxed"
    return f"{state} in {result.steps} steps, energy {result.energy:.4f} eV, largest force {result.fmax:.3f} eV/Å"


def turned(atoms: Atoms, reference: Atoms) -> Atoms:
    """`atoms` seen along the direction in which `reference` is thinnest."""
    centred = reference.positions - reference.positions.mean(axis=0)
    _, _, axes = np.linalg.svd(centred)
    copy = atoms.copy()
    copy.positions = (atoms.positions - atoms.positions.mean(axis=0)) @ (axes * np.linalg.det(axes)).T
    return copy


def from_the_side(slab: Atoms) -> Atoms:
    """A slab repeated along the surface, its normal pointing up."""
    wide = slab.repeat((2, 1, 1))
    wide.set_constraint()
    wide.positions = wide.positions[:, [0, 2, 1]] * [1, 1, -1]
    return wide


if __name__ == "__main__":
    try:
        main()
    except GFMError as error:
        sys.exit(f"demo: error: {error}")
