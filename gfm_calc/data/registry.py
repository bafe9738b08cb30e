"""The published sources of labelled structures that a foundation model is trained on, as data.

What was taken from memory or from second hand is named in `to_verify`; look it up before you rely on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from ..errors import ConfigError, did_you_mean
from .readers.options import ReadOptions
from .schema import Record


@dataclass(frozen=True, kw_only=True)
class Source:
    """One published dataset.

    Attributes:
        name, title: for the command line, for people.
        format: of the raw files, a name of `readers.FORMATS`; `files`: what they are called.
        options: how its labels are read: the choice that the publication makes where a file leaves one.
        code, functional, basis, dispersion: the level of theory.
        energy: what the energy is ("total", "total, raw"), with its unit as published.
        units: of energy, length, forces and stress as published.
        charge, spin: the convention, and where the values are.
        periodic: "bulk", "slab", "molecule".
        group: what must stay on one side of a split.
        splits: official ones.
        size: number of frames as published.
        reference: DOI or arXiv number of the paper.
        licence: of the data.
        traps: what has gone wrong for others.
        part_of: sources that contain this one: using both counts frames twice.
        shares_structures: sources with the same structures under other labels: split them together.
        total_charge: "any", "zero" or "nonzero": the frames that belong to this source.
        to_verify: names of the attributes above that were not checked at the source.
    """

    name: str
    title: str
    format: str
    files: str
    options: ReadOptions = field(default_factory=ReadOptions)
    code: str
    functional: str
    basis: str
    dispersion: str = "none"
    energy: str = "total, eV"
    units: str = "eV, Å, eV/Å"
    charge: str = "neutral, not stored"
    spin: str = "not stored"
    periodic: str = "molecule"
    group: str
    splits: str = "none"
    size: str
    reference: str
    licence: str
    traps: tuple[str, ...] = ()
    part_of: tuple[str, ...] = ()
    shares_structures: tuple[str, ...] = ()
    total_charge: str = "any"
    to_verify: tuple[str, ...] = ()

    @property
    def level_of_theory(self) -> str:
        """'functional/basis (code)'."""
        return f"{self.functional}/{self.basis} ({self.code})"

    def keeps(self, record: Record) -> bool:
        """Whether a record of the raw files belongs to this source."""
        if self.total_charge == "any":
            return True
        return (record.charge == 0) == (self.total_charge == "zero")


def source(name: str) -> Source:
    """The source of that name.

    Raises:
        ConfigError: unknown.
    """
    if name not in SOURCES:
        raise ConfigError(f"unknown source {name!r}{did_you_mean(name, SOURCES)}: one of {', '.join(SOURCES)}")
    return SOURCES[name]


def refuse_double_counting(names: Iterable[str]) -> None:
    """ConfigError where one of the sources is contained in another of them."""
    chosen = [source(name) for name in names]
    for part in chosen:
        for whole in chosen:
            if whole.name in part.part_of:
                raise ConfigError(
                    f"{part.name} is part of {whole.name}: its frames would be counted twice; take one of the two"
                )


_TABLE = (
    Source(
        name="alexandria", title="Alexandria (PBE)", format="alexandria", files="alexandria_*.json.bz2",
        options=ReadOptions(energy_key="energy_total", stress_key="none"),
        code="VASP", functional="PBE(+U)", basis="PAW, Materials Project settings, 520 eV", periodic="bulk",
        units="eV, Å, eV/Å; stress of relaxation paths kBar with VASP's sign", group="material (mat_id)",
        size="5.8 million static calculations; relaxation paths beside them",
        reference="10.1002/adma.202210788", licence="CC-BY-4.0", shares_structures=("omat24", "mptrj"),
        traps=(
            "energy_total is the DFT energy, energy_corrected has Materials Project corrections, e_form is a formation energy",
            "the unit and sign of the stress of static entries are not stated in the file: it is left out unless given",
            "the 1D and 2D sets carry pbc in their lattice; a reader that takes pbc=True everywhere makes bulk of them",
            "PBE, PBEsol and SCAN are published as separate sets under the same mat_id: one head each",
        ),
        to_verify=("size", "basis", "shares_structures"),
    ),
    Source(
        name="ani1x", title="ANI-1x", format="hdf5", files="ani1x-release.h5",
        options=ReadOptions(energy_key="wb97x_dz.energy", forces_key="wb97x_dz.forces"),
        code="Gaussian 09", functional="wB97X", basis="6-31G(d)", energy="total, Ha", units="Ha, Å, Ha/Å",
        group="formula (HDF5 group)", size="4,956,005", reference="10.1038/s41597-020-0473-z", licence="CC-BY-4.0",
        shares_structures=("omol25",),
        traps=(
            "the file holds several levels of theory side by side; NaN means that one was not calculated",
            "forces are per Å, not per bohr",
            "Gaussian's 6-31G(d) has Cartesian d functions: its zero is not that of Transition1x, nominally the same level",
            "distributed copies of ANI data exist whose array called forces is the gradient",
        ),
        to_verify=("licence",),
    ),
    Source(
        name="mptrj", title="MPtrj", format="mptrj", files="MPtrj_2022.9_full.json",
        options=ReadOptions(energy_key="uncorrected_total_energy"),
        code="VASP", functional="PBE(+U)", basis="PAW, Materials Project settings, 520 eV", periodic="bulk",
        units="eV, Å, eV/Å, kBar with VASP's sign", spin="magnetic moments, where there are any", group="material (mp-id)",
        size="1,580,395", reference="10.1038/s42256-023-00716-3", licence="CC-BY-4.0",
        shares_structures=("alexandria", "omat24"),
        traps=(
            "corrected_total_energy has compound corrections and is not what the forces are the gradient of by composition",
            "energy_per_atom is corrected; ef_per_atom is a formation energy",
            "stress is in kBar and positive in compression",
            "GGA and GGA+U are mixed by composition",
        ),
        to_verify=("licence",),
    ),
    Source(
        name="oc20", title="Open Catalyst 2020 (S2EF)", format="extxyz", files="*.extxyz.xz",
        options=ReadOptions(energy_key="energy"),
        code="VASP", functional="RPBE", basis="PAW, 350 eV", energy="total, raw, eV", periodic="slab",
        group="system: first column of the .txt beside each file",
        splits="200K, 2M, 20M, all; val id, ood_ads, ood_cat, ood_both", size="133,934,018",
        reference="10.1021/acscatal.0c04525", licence="CC-BY-4.0",
        traps=(
            "papers report adsorption energies: the raw total less reference_energy of the .txt file",
            "forces on fixed atoms are stored in full; get_forces() of ASE sets them to zero",
            "get_total_energy() of ASE adds the kinetic energy",
            "200K is part of 2M, 2M of 20M, 20M of all; the LMDB files are pickled and not read here",
            "relaxed slab layers are frozen in the calculation: their stress means nothing",
        ),
        to_verify=("basis", "size"),
    ),
    Source(
        name="oc22", title="Open Catalyst 2022", format="traj", files="*.traj",
        options=ReadOptions(energy_key="energy"),
        code="VASP", functional="PBE+U", basis="PAW, 500 eV", periodic="slab", group="trajectory (file)",
        splits="train, val_id, val_ood", size="62,331 systems, 9,854,504 frames", reference="10.1021/acscatal.2c05426",
        licence="CC-BY-4.0",
        traps=(
            "PBE+U total energies: never one head with OC20 (RPBE)",
            "get_forces() of ASE sets the forces on fixed atoms to zero",
            "the metadata is a pickle file and not read here",
        ),
        to_verify=("basis", "size"),
    ),
    Source(
        name="oc25", title="Open Catalyst 2025", format="ase-lmdb", files="*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="VASP", functional="RPBE", basis="PAW", dispersion="D3", periodic="slab",
        group="not stored: split by composition", splits="train, val, test", size="7,801,261",
        reference="arXiv:2509.17862", licence="CC-BY-4.0",
        traps=("dispersion is included: not the level of OC20", "explicit solvent: 144 atoms on average"),
        to_verify=("basis", "group", "splits"),
    ),
    Source(
        name="odac23", title="Open DAC 2023", format="extxyz", files="**/*.extxyz",
        options=ReadOptions(energy_key="energy"),
        code="VASP", functional="PBE", basis="PAW, 600 eV", dispersion="D3", periodic="bulk", group="trajectory (file)",
        splits="train, val; test ood-large, ood-linker, ood-topology", size="about 38 million",
        reference="10.1021/acscentsci.3c01629", licence="CC-BY-4.0",
        traps=(
            "superseded by ODAC25, which corrects part of its frameworks",
            "a file is one trajectory of hundreds of near-identical frames: split by file at least, by framework better",
        ),
        to_verify=("basis", "size", "group"),
    ),
    Source(
        name="omat24", title="OMat24", format="ase-lmdb", files="**/*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="VASP", functional="PBE(+U)", basis="PAW (PBE_54)", periodic="bulk", units="eV, Å, eV/Å, eV/Å³",
        group="not stored: split by composition", splits="train, val (corrected 2024-12-20)",
        size="about 110 million", reference="arXiv:2410.12771", licence="CC-BY-4.0",
        shares_structures=("alexandria", "mptrj"),
        traps=(
            "newer pseudopotentials than Materials Project and MPtrj: never one head with them",
            "the first validation set held duplicates; take the one of 2024-12-20",
            "rattled-T-subsampled is part of no other subset, but of the same procedure: split by composition over all",
            "started from Alexandria's structures",
        ),
        to_verify=("size", "basis", "group"),
    ),
    Source(
        name="omol25", title="OMol25", format="ase-lmdb", files="*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="ORCA 6", functional="wB97M-V", basis="def2-TZVPD", dispersion="included",
        charge="data.charge, -10 to +10", spin="data.spin, multiplicity 2S+1, 1 to 11",
        group="not stored: split by composition", splits="train 4M, train all, val, test",
        size="over 100 million", reference="arXiv:2505.08762", licence="CC-BY-4.0", shares_structures=("ani1x", "transition1x"),
        traps=(
            "total energies reach -1e5 eV: float32 loses them, subtract references in float64",
            "some codes read charge and spin from info and fall back to 0 and 1 where the reader drops them",
            "geometries of earlier sets (ANI, Transition1x and others) were recalculated: split them together",
        ),
        to_verify=("charge", "spin", "shares_structures", "splits"),
    ),
    Source(
        name="omol25-neutral", title="OMol25, neutral part", format="ase-lmdb", files="*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="ORCA 6", functional="wB97M-V", basis="def2-TZVPD", dispersion="included",
        charge="0", spin="data.spin, multiplicity 2S+1", group="not stored: split by composition",
        splits="those of OMol25", size="to be counted", reference="arXiv:2505.08762", licence="CC-BY-4.0",
        part_of=("omol25",), total_charge="zero", shares_structures=("omol25-non-neutral", "ani1x", "transition1x"),
        traps=("a subset of OMol25: take the whole or its parts",),
        to_verify=("size",),
    ),
    Source(
        name="omol25-non-neutral", title="OMol25, charged part", format="ase-lmdb", files="*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="ORCA 6", functional="wB97M-V", basis="def2-TZVPD", dispersion="included",
        charge="data.charge, not 0", spin="data.spin, multiplicity 2S+1", group="not stored: split by composition",
        splits="those of OMol25", size="to be counted", reference="arXiv:2505.08762", licence="CC-BY-4.0",
        part_of=("omol25",), total_charge="nonzero", shares_structures=("omol25-neutral",),
        traps=("a subset of OMol25: take the whole or its parts", "the same molecule occurs neutral in the other part"),
        to_verify=("size",),
    ),
    Source(
        name="opoly26", title="OPoly26", format="ase-lmdb", files="*.aselmdb",
        options=ReadOptions(energy_key="energy"),
        code="ORCA 6", functional="wB97M-V", basis="def2-TZVPD", dispersion="included",
        charge="data.charge", spin="data.spin, multiplicity 2S+1", group="not stored: split by composition",
        splits="train 5,902,827, val 201,865, test 248,391", size="6.35 million", reference="arXiv:2512.23117",
        licence="CC-BY-4.0",
        traps=("clusters cut out of polymer melts: neighbours in a melt share most of their atoms",),
        to_verify=("size", "splits", "charge", "spin"),
    ),
    Source(
        name="nabla2dft", title="nabla2DFT", format="ase-db", files="*.db",
        options=ReadOptions(
            energy_unit="Ha", length_unit="A", forces_unit="Ha/A", energy_key="energy", forces_key="forces",
            group_key="moses_id",
        ),
        code="Psi4", functional="wB97X-D", basis="def2-SVP", dispersion="included",
        energy="less those of free atoms (atomrefs of the metadata), Ha", units="Ha, Å, Ha/Å", group="molecule (moses_id)",
        splits="train 2k to 500k; test by conformation, structure, scaffold",
        size="12,676,264 conformations; relaxation trajectories beside them", reference="arXiv:2406.14347",
        licence="not stated for the data; code MIT",
        traps=(
            "labels are in the row's data, not in ASE's energy column, and in Hartree; some files state that in their "
            "metadata, some do not",
            "forces are Hartree per Å",
            "energies are less the free atoms' (a drug-like molecule has -6 Ha, not -1600): never one head with totals",
        ),
        to_verify=("licence", "size"),
    ),
    Source(
        name="qcml", title="QCML (DFT force field)", format="tfrecord", files="qcml-full.tfrecord-*",
        options=ReadOptions(energy_key="pbe0_energy", forces_key="pbe0_forces"),
        code="FHI-aims", functional="PBE0", basis="numeric atomic orbitals", energy="total, Ha", units="Ha, bohr, Ha/bohr",
        charge="charge", spin="multiplicity, 2S+1", group="not stored here: split by composition",
        size="33.5 million", reference="10.1038/s41597-025-04720-7", licence="CC-BY-NC-4.0",
        traps=(
            "atomic units throughout, positions in bohr: codes have trained on them as eV and Å",
            "float32 energies: all-electron totals of heavy elements are rounded to about 1e-3 Ha",
            "is_outlier marks calculations that the authors distrust; charges and multiplicities are not all 0 and 1",
        ),
        to_verify=("licence", "size", "basis", "dispersion", "units"),
    ),
    Source(
        name="qm7x", title="QM7-X", format="hdf5", files="1000.hdf5 to 8000.hdf5",
        options=ReadOptions(energy_key="ePBE0+MBD", forces_key="totFOR"),
        code="FHI-aims", functional="PBE0", basis="tight", dispersion="MBD", group="molecule (top-level group)",
        size="4,195,237", reference="10.1038/s41597-021-00812-2", licence="CC-BY-4.0",
        traps=(
            "ePBE0 goes with pbe0FOR, ePBE0+MBD with totFOR",
            "a list of duplicate molecules (DupMols.dat) is published beside the data",
            "isomers and conformers of one molecule are in different groups of one file: split by molecule",
        ),
    ),
    Source(
        name="transition1x", title="Transition1x", format="hdf5", files="Transition1x.h5",
        options=ReadOptions(energy_key="wB97x_6-31G(d).energy", forces_key="wB97x_6-31G(d).forces"),
        code="ORCA 5", functional="wB97x", basis="6-31G(d)", group="formula",
        splits="train, val, test in the file, links to the same reactions as data", size="9.6 million",
        reference="10.1038/s41597-022-01870-w", licence="CC-BY-4.0", shares_structures=("omol25",),
        traps=(
            "data, train, val and test are the same frames: reading all of them counts each twice",
            "reactant and product lie beside the path, the transition state in it",
            "reactions of one formula share reactants: split by formula",
            "closed-shell calculations along bond breaking: energies far from minima are questionable",
        ),
        to_verify=("licence", "code", "size"),
    ),
)  # fmt: skip
SOURCES: Mapping[str, Source] = MappingProxyType({entry.name: entry for entry in _TABLE})
