"""Calculators that misbehave, by import path: `calculators_for_tests:NAME`; and one in the place of a published model."""

import os
import signal
import time

import numpy as np
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from gfm_calc.benchmarks.contenders import ProcessEndedError


class Sum(Calculator):
    """Energy is the sum of atomic numbers times `factor`; forces point along x."""

    implemented_properties = ["energy", "forces"]

    def __init__(self, factor=1.0, log=None):
        super().__init__()
        self.factor, self.log = factor, log

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        if self.log:
            with open(self.log, "a") as handle:
                handle.write(f"{len(atoms)}\n")
        self.misbehave(atoms)
        forces = np.tile([self.factor, 0, 0], (len(atoms), 1))
        self.results = {"energy": self.factor * float(atoms.numbers.sum()), "forces": forces}

    def misbehave(self, atoms):
        """Nothing here."""


class Nasty(Sum):
    """Dies, hangs, raises or gives NaN, as the first element asks for."""

    def misbehave(self, atoms):
        number = atoms.numbers[0]
        if number == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 3:
            time.sleep(60)
        if number == 4:
            raise RuntimeError("does\nnot converge")
        if number == 5:
            self.factor = float("nan")


NOT_A_CLASS = 3


class Useless:
    """No calculator."""


class Peer(EMT):
    """As `benchmarks.remote.RemoteCalculator`: it has a title and a version."""

    title, release = "Effective medium", "1"


class Gone(Peer):
    """Its process has ended."""

    title = "Gone"

    def calculate(self, *more, **options):
        raise ProcessEndedError("gone: its process ended: Killed")
