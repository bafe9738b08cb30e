"""What the model expects its own errors to be: learnt from the residuals of a trained model, on its invariant features.

With x_i = (s_i, ln(|v_i|² + 0.01)) of an atom, its gate g_i (see `heads.isolation_gate`), and M small networks a head,

    (a_i, b_i) = W2 silu(W1 x_i + b1) + b2        error of the force on i: g_i exp(a_i)        of the energy: sum_i g_i exp(b_i)

averaged over the networks, each of which has seen a bootstrap of the structures.  Both are mean absolute errors.  The features
are those that the energies are made of, so this costs no gradient and no further pass, and an isolated atom, whose energy is
exact, gets zero.  Errors of atoms add up, not their squares: a supercell repeats the error of its cell.

Of a property the networks give errors in units of its mean error (`unit` in the figures), without a gate: exp(a_i) of atoms, and
of structures the sum of exp(b_i), or their mean where the property is one.  A class says by its probability how sure it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .config import HeadSpec
from .errors import HeadError
from .graph import GraphBatch

_FLOOR = 1e-2  # of |v|², in its logarithm
_LOG_RANGE = (-12.0, 4.0)  # of the outputs: from 6e-6 to 55 eV/Å, whatever the structure
SHAPES = ("hidden", "hidden_bias", "output", "output_bias")


def features(scalars: Tensor, vectors: Tensor) -> Tensor:
    """x, [N, 2F], from the encoder's scalars [N, F] and vectors [N, 3, F]."""
    return torch.cat([scalars, (vectors.square().sum(dim=1) + _FLOOR).log()], dim=1)


def expected_errors(x: Tensor, gate: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """[..., M, N, 2], by each network: of the force on each atom in eV/Å, and what the atom adds to the energy's in eV.

    Args:
        x: [N, 2F].
        gate: [N].
        weights: W1 [..., M, 2F, K], b1 [..., M, K], W2 [..., M, K, 2], b2 [..., M, 2].
    """
    hidden, hidden_bias, output, output_bias = weights
    activated = nn.functional.silu(x @ hidden + hidden_bias.unsqueeze(-2))
    logarithms = activated @ output + output_bias.unsqueeze(-2)
    return gate.unsqueeze(-1) * logarithms.clamp(*_LOG_RANGE).exp()


class ErrorHeads(nn.Module):
    """Expected errors of some heads, H of them, as buffers: training of the model leaves them alone.

    Args:
        tensors: {"hidden": [H, M, 2F, K], "hidden_bias": [H, M, K], "output": [H, M, K, 2], "output_bias": [H, M, 2]}.
        figures: {head: JSON values: how they were fitted, and how well they did}, in the order of the stack.
    """

    hidden: Tensor

    def __init__(self, tensors: Mapping[str, Tensor], figures: Mapping[str, Mapping]):
        super().__init__()
        self.figures = {head: dict(entry) for head, entry in figures.items()}
        for name in SHAPES:
            # Not part of the weights: a model is the same with and without them, and they have a file of their own.
            self.register_buffer(name, tensors[name], persistent=False)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The buffers, by name."""
        return {name: getattr(self, name) for name in SHAPES}

    def forward(self, scalars: Tensor, vectors: Tensor, gate: Tensor, heads: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Of the forces, [H', N] in eV/Å, and shares of the energy's, [H', N] in eV; float64.

        Args:
            scalars, vectors, gate: [N, F], [N, 3, F], [N].
            heads: names, H' of them.

        Raises:
            HeadError: one of them has none.
        """
        rows = self.rows(heads)
        dtype = self.hidden.dtype
        with torch.no_grad(), torch.autocast(scalars.device.type, enabled=False):
            x = features(scalars.to(dtype), vectors.to(dtype))
            weights = [tensor.index_select(0, rows) for tensor in self.tensors.values()]
            found = expected_errors(x, gate.to(dtype), weights).mean(dim=1).to(torch.float64)
        return found[..., 0], found[..., 1]

    def expect(self, known: Sequence[Tensor], batch: GraphBatch, heads: Sequence[str]) -> list[dict[str, Tensor]]:
        """For each head energy_uncertainty [B] in eV and forces_uncertainty [N] in eV/Å, float64 on the CPU.

        Args:
            known: scalars, vectors, gate, as for `forward`.
        """
        forces, shares = (tensor.cpu() for tensor in self(*known, heads))
        totals = shares.new_zeros(len(heads), batch.num_graphs).index_add(1, batch.batch.cpu(), shares)
        return [{"energy_uncertainty": e, "forces_uncertainty": f} for e, f in zip(totals, forces)]

    def expect_value(self, known: Sequence[Tensor], batch: GraphBatch, spec: HeadSpec) -> Tensor:
        """The expected error of a property, [B], or [N] of one of atoms, in the head's unit; float64 on the CPU.

        Args:
            known: scalars, vectors.
            spec: of the property head.
        """
        of_atoms, shares = (tensor.cpu() for tensor in self(*known, torch.ones_like(known[0][:, 0]), [spec.name]))
        unit = float(self.figures[spec.name]["unit"])
        if spec.is_of_atoms:
            return unit * of_atoms[0]
        totals = shares.new_zeros(batch.num_graphs).index_add(0, batch.batch.cpu(), shares[0])
        return unit * (totals if spec.is_sum else totals / batch.ptr.diff().cpu())

    def rows(self, heads: Sequence[str]) -> Tensor:
        """[H'], where in the stack heads are; HeadError for one that is not."""
        known = list(self.figures)
        for head in heads:
            if head not in known:
                raise no_uncertainty(head)
        return torch.tensor([known.index(head) for head in heads], dtype=torch.int64, device=self.hidden.device)

    def only(self, heads: Sequence[str]) -> ErrorHeads | None:
        """Those of `heads` that it knows, in that order; None where it knows none."""
        known = [head for head in heads if head in self.figures]
        rows = self.rows(known)
        tensors = {name: tensor.index_select(0, rows).clone() for name, tensor in self.tensors.items()}
        return ErrorHeads(tensors, {head: self.figures[head] for head in known}) if known else None


def no_uncertainty(head: str) -> HeadError:
    """The error where an uncertainty is asked for that the model does not have."""
    return HeadError(
        f"head {head} has no uncertainty; gfm uncertainty MODEL --data DATASETS gives it one "
        "(of a fine-tuned head, --run DIR/run), from 100 training structures on"
    )
