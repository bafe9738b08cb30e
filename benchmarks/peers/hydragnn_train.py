"""HydraGNN's PaiNN in the lead configuration of arXiv 2604.15380, trained by its own `hydragnn.train.train`.

Run by the python of an environment with HydraGNN's dependencies; HydraGNN itself is a checkout, named by --checkout or by
the environment variable HYDRAGNN_CHECKOUT.  Width 337, 2 convolutions (the first has width 1, since its input is the atomic
number), 4 radial functions, 5 Å, heads of 2 x 50 and 2 x 776, sum pooling, charge and spin concatenated to the nodes; one
of the 16 branches, which is what a process holds in its task-parallel mode.  Its loss: mean absolute errors of energies an
atom and forces, 1 : 10; its AdamW.  Wrappers for several processes are left out.
"""

import argparse
import contextlib
import io
import os
import subprocess
import sys
import types

import torch
import torch.distributed as dist
from measure import answer_jobs
from steps import clocked
from torch_geometric.data import Batch, Data
from torch_geometric.utils import scatter


def lead_configuration(options):
    """The configuration, for `create_model_config`."""
    head = {
        "num_sharedlayers": 2, "dim_sharedlayers": 50, "num_headlayers": 2, "dim_headlayers": [options.head_width] * 2,
    }  # fmt: skip
    absent = (
        "num_nodes edge_dim initial_bias global_attn_engine global_attn_type pna_deg num_before_skip num_after_skip "
        "radial_type distance_transform basis_emb_size int_emb_size out_emb_size envelope_exponent num_spherical "
        "num_gaussians num_filters correlation max_ell node_max_ell avg_num_neighbors"
    )
    architecture = dict.fromkeys(absent.split()) | {
        "mpnn_type": "PAINN", "enable_interatomic_potential": True, "equivariance": True, "radius": options.cutoff,
        "max_neighbours": 20, "num_radial": options.radial, "hidden_dim": options.width,
        "num_conv_layers": options.layers, "graph_pooling": "add", "use_graph_attr_conditioning": True,
        "graph_attr_conditioning_mode": "concat_node",
        "output_heads": {"graph": [{"type": "branch-0", "architecture": head}]}, "task_weights": [1.0],
        "energy_peratom_weight": 1.0, "force_weight": 10.0, "input_dim": 1, "output_dim": [1], "output_type": ["graph"],
        "activation_function": "relu", "freeze_conv_layers": False, "SyncBatchNorm": False, "pe_dim": 0,
        "global_attn_heads": 0,
    }  # fmt: skip
    training = {"loss_function_type": "mae", "conv_checkpointing": False, "precision": "fp32"}
    return {"Architecture": architecture, "Training": training}


class HydraGNNTrainee:
    """See `steps.Trainee`."""

    def __init__(self, options):
        self.options = options
        self.checkout = os.path.abspath(options.checkout)
        sys.path.insert(0, self.checkout)
        stand_in_for_torch_scatter()
        from hydragnn.models.create import create_model_config
        from hydragnn.train.train_validate_test import train
        from hydragnn.utils.optimizer.optimizer import select_standard_optimizer

        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # its train() asks for the rank
        self._train, self._select = train, select_standard_optimizer
        torch.manual_seed(0)
        self.model = Alone(create_model_config(config=lead_configuration(options), verbosity=0))
        self.optimizer = None
        self._warm_up()

    def _warm_up(self):
        """One forward pass: the layer that takes charge and spin is made in it."""
        water = {
            "numbers": torch.tensor([8, 1, 1]).numpy(), "positions": torch.eye(3).double().numpy(),
            "structure": torch.zeros(3, dtype=torch.long).numpy(), "pairs": torch.tensor([[0, 1], [1, 0]]).numpy(),
            "shifts": torch.zeros(2, 3).double().numpy(), "energy": torch.zeros(1).double().numpy(),
            "forces": torch.zeros(3, 3).double().numpy(),
        }  # fmt: skip
        self.model(batch_of(water))
        self.optimizer = self._select(self.model, {"type": "AdamW", "learning_rate": 1e-4})

    def describe(self):
        o = self.options
        return {
            "name": "HydraGNN", "version": commit_of(self.checkout), "torch": torch.__version__,
            "model": f"PaiNN, width {o.width}, {o.layers} layers (the first of width 1), {o.radial} radial functions",
            "parameters": sum(p.numel() for p in self.model.parameters()),
        }  # fmt: skip

    def turn(self, batches):
        loader = Loader(batch_of(batch) for batch in batches)

        def run():
            with contextlib.redirect_stdout(io.StringIO()):
                loss, _ = self._train(
                    loader, self.model, self.optimizer, 0, num_tasks=3, compute_grad_energy=True, precision="fp32"
                )
            return float(loss)

        return run


class Loader(list):
    """Batches that are ready; `train` asks a loader for its dataset."""

    dataset = None


class Alone(torch.nn.Module):
    """A model as `train` wants it: what wraps it for several processes keeps it in `module`."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, data):
        return self.module(data)


def batch_of(arrays):
    """A batch in the layout of HydraGNN's examples."""
    owner = torch.from_numpy(arrays["structure"])
    pairs = torch.from_numpy(arrays["pairs"])
    owner_of_pair = owner[pairs[1]]
    parts = []
    first = 0
    for number, count in enumerate(torch.bincount(owner).tolist()):
        atoms, edges = slice(first, first + count), owner_of_pair == number
        parts.append(Data(
            x=torch.from_numpy(arrays["numbers"][atoms]).float().unsqueeze(1),
            pos=torch.from_numpy(arrays["positions"][atoms]).float(),
            # Its PaiNN sums over the second of a pair at the first.
            edge_index=pairs[:, edges].flip(0) - first,
            edge_shifts=torch.from_numpy(arrays["shifts"]).float()[edges],
            graph_attr=torch.tensor([0.0, 1.0]), natoms=torch.tensor([count]),
            dataset_name=torch.zeros(1, 1, dtype=torch.long),
            energy=torch.from_numpy(arrays["energy"][number : number + 1]).float(),
            forces=torch.from_numpy(arrays["forces"][atoms]).float(),
        ))  # fmt: skip
        first += count
    return Batch.from_data_list(parts)


def stand_in_for_torch_scatter():
    """Where torch_scatter has no wheel for this torch: HydraGNN's PaiNN needs its sums alone, which torch has too."""
    try:
        import torch_scatter  # noqa: F401
    except ImportError:
        module = types.ModuleType("torch_scatter")
        module.scatter = lambda src, index, dim=-1, out=None, dim_size=None, reduce="sum": scatter(
            src, index, dim=dim % src.dim(), dim_size=dim_size, reduce=reduce
        )
        module.scatter_add = lambda src, index, dim=-1, out=None, dim_size=None: module.scatter(
            src, index, dim, None, dim_size
        )
        sys.modules["torch_scatter"] = module


def commit_of(checkout):
    """Which version it is: the commit where git knows, else what COMMIT in the folder says."""
    noted = os.path.join(checkout, "COMMIT")
    if os.path.exists(noted):
        with open(noted) as file:
            return file.read().strip()[:12]
    command = ["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    given = os.environ.get("HYDRAGNN_CHECKOUT")
    parser.add_argument("--checkout", default=given, required=given is None, help="folder of a checkout of HydraGNN")
    for name, value in (("width", 337), ("layers", 2), ("radial", 4), ("head-width", 776)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--cutoff", type=float, default=5.0)
    answer_jobs(clocked(HydraGNNTrainee, parser), parser)


if __name__ == "__main__":
    main()
