"""HydraGNN's fused inference on its lead configuration, energies and forces, from its example multidataset_hpo_sc26.

Run by the python of an environment with HydraGNN's dependencies, as `hydragnn_train.py`, which says what the model is; all
branches are there.  Modes: "single", each structure by one branch; "fused", all branches on one encoder pass and one
gradient; "single-compile" and "compile", the same with its convolutions compiled.  Scope "model" begins with batches that
have their neighbours, "end to end" with positions: its own neighbour search and collation.  (Its branch skip needs a trained
network.)
"""

import argparse
import contextlib
import io
import os
import sys
import time

import numpy as np
import torch
from hydragnn_train import batch_of, commit_of, lead_configuration, stand_in_for_torch_scatter
from measure import answer_jobs
from steps import read_batches
from torch.utils.flop_counter import FlopCounterMode
from torch_geometric.data import Batch, Data


class HydraGNNScreener:
    """The model, and the batches of a run."""

    def __init__(self, options):
        self.options = options
        self.checkout = os.path.abspath(options.checkout)
        sys.path[:0] = [self.checkout, os.path.join(self.checkout, "examples", "multidataset_hpo_sc26")]
        stand_in_for_torch_scatter()
        with contextlib.redirect_stdout(io.StringIO()):
            import inference_fused
            from hydragnn.models.create import create_model_config
            from hydragnn.preprocess import get_radius_graph_pbc

            torch.manual_seed(0)
            self.model = create_model_config(config=_all_branches(options), verbosity=0).eval()
        self.fused, self.neighbours = inference_fused, get_radius_graph_pbc
        self.arrays = read_batches(options.batches, "all")
        self.batches = [batch_of(arrays) for arrays in self.arrays]
        self.model(self.batches[0].clone())  # the layer that takes charge and spin is made in it
        self.model.requires_grad_(False)
        self.decoder = self.fused._build_batched_decoder(self.model, torch.device("cpu"))
        self.compiled = False

    def describe(self):
        return {
            "name": "HydraGNN", "version": commit_of(self.checkout), "torch": torch.__version__,
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }  # fmt: skip

    def run(self, job):
        """{"job": "predict", "mode", "scope"} -> {"seconds"} of one pass over all batches; {"job": "count", "mode"} -> {"flops"}
        of its matrix products."""
        if job["job"] == "count":
            with FlopCounterMode(display=False) as counted:
                for ready in self.batches:
                    self._predict(ready.clone(), job["mode"])
            return {"flops": counted.get_total_flops()}
        if job["mode"].endswith("compile") and not self.compiled:
            with contextlib.redirect_stdout(io.StringIO()):
                self.fused._apply_torch_compile(self.model, True, False, False, "inductor")
            self.compiled = True
        started = time.perf_counter()
        for arrays, ready in zip(self.arrays, self.batches):
            batch = ready.clone() if job["scope"] == "model" else self._from_positions(arrays)
            energy, forces = self._predict(batch, job["mode"])
        seconds = time.perf_counter() - started
        if not (torch.isfinite(energy).all() and torch.isfinite(forces).all()):
            raise ValueError("the numbers are not finite")
        return {"seconds": seconds}

    def _predict(self, batch, mode):
        batch.pos.requires_grad_(True)
        if mode.startswith("single"):
            batch.dataset_name = (torch.arange(batch.num_graphs) % self.options.branches).view(-1, 1)
            energy = self.model(batch)[0].squeeze(-1)
        else:
            encoded = self.fused._encode_once(self.model, batch)
            parts = self.fused._batched_decode_all_branches(self.model, batch, encoded, self.decoder)
            energy = sum(parts) / self.options.branches
        return energy.detach(), -torch.autograd.grad(energy.sum(), batch.pos)[0]

    def _from_positions(self, arrays):
        structure = arrays["structure"]
        graphs = []
        for number in range(int(structure.max()) + 1):
            atoms = structure == number
            data = Data(
                x=torch.from_numpy(arrays["numbers"][atoms]).float().unsqueeze(1),
                pos=torch.from_numpy(arrays["positions"][atoms]).float(), cell=1000.0 * torch.eye(3),
                pbc=torch.zeros(3, dtype=torch.bool), graph_attr=torch.tensor([0.0, 1.0]),
                natoms=torch.tensor([int(np.count_nonzero(atoms))]), dataset_name=torch.zeros(1, 1, dtype=torch.long),
            )  # fmt: skip
            with contextlib.redirect_stdout(io.StringIO()):
                graphs.append(self.neighbours(self.options.cutoff, 100_000)(data))
        return Batch.from_data_list(graphs)


def _all_branches(options):
    config = lead_configuration(options)
    (branch,) = config["Architecture"]["output_heads"]["graph"]
    config["Architecture"]["output_heads"]["graph"] = [
        {**branch, "type": f"branch-{k}", "architecture": dict(branch["architecture"])} for k in range(options.branches)
    ]
    return config


def start(options):
    """See `measure.answer_jobs`."""
    screener = HydraGNNScreener(options)
    return screener.describe(), screener.run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    given = os.environ.get("HYDRAGNN_CHECKOUT")
    parser.add_argument("--checkout", default=given, required=given is None, help="folder of a checkout of HydraGNN")
    parser.add_argument("--batches", required=True, help=".npz of the batches")
    for name, value in (("width", 337), ("layers", 2), ("radial", 4), ("head-width", 776), ("branches", 16)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cutoff", type=float, default=5.0)
    answer_jobs(start, parser)


if __name__ == "__main__":
    main()
