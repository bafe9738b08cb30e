"""Weights, gradients, optimiser state and running average of a set of parameters, each as one flat vector.

One vector is one call to add up over processes, one kernel to update, and can be cut into equal parts among processes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfm_calc.train.orthogonal import orthogonalized

_ALIGN = 16  # numbers; each parameter begins on a border of 64 bytes (float32)
STATES = ("weight", "average", "exp_avg", "exp_avg_sq")
BEST = "best"  # a state that is there once a validation has found it


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """The constants of the update (Loshchilov and Hutter, DOI 10.48550/arXiv.1711.05101)."""

    beta1: float
    beta2: float
    weight_decay: float
    epsilon: float = 1e-8


def slots_of(shapes: Mapping[str, tuple[int, ...]], decayed: set[str]) -> dict[str, tuple[int, tuple[int, ...]]]:
    """name -> (where it begins, shape) of parameters in a flat vector: the decayed ones first, all on borders."""
    found, at = {}, 0
    for name in sorted(shapes, key=lambda n: n not in decayed):
        found[name] = (at, shapes[name])
        at = _aligned(at + math.prod(shapes[name]))
    return found


def _aligned(size: int, parts: int = 1) -> int:
    return -(-size // (_ALIGN * parts)) * _ALIGN * parts


class FlatParameters:
    """Parameters whose values and gradients are views of `weight` and `gradient`.

    Args:
        parameters: name -> parameter, the same on all processes that share them.
        decayed: names to which weight decay applies.
        parts, part: into how many parts the state is cut, and which of them this process holds; `weight` and `gradient`
            are whole everywhere.
        rates: name -> factor of the learning rate, for parameters where it is not 1.
        turned: names of matrices whose updates are orthogonal (Muon) in place of AdamW's.

    Attributes: `slots`, see `slots_of`; `weight`, `gradient` [n]; `average`, `exp_avg`, `exp_avg_sq` [n / parts]: this
    process's part; `best`, the part that did best, or None.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], decayed: set[str], *, parts: int = 1, part: int = 0,
        rates: Mapping[str, float] | None = None, turned: Collection[str] = (),
    ):  # fmt: skip
        self.parts, self.part, self.decayed, self.turned = parts, part, decayed, tuple(turned)
        self.slots = slots_of({name: tuple(p.shape) for name, p in parameters.items()}, decayed)
        ends = {name: _aligned(start + math.prod(shape)) for name, (start, shape) in self.slots.items()}
        self._decayed = max((ends[name] for name in ends if name in decayed), default=0)
        size = _aligned(max(ends.values()), parts)
        example = next(iter(parameters.values()))
        self.weight = torch.zeros(size, dtype=example.dtype, device=example.device)
        self.gradient = torch.zeros_like(self.weight)
        for name, parameter in parameters.items():
            self.view(self.weight, name).copy_(parameter.detach())
            parameter.data = self.view(self.weight, name)
            parameter.grad = self.view(self.gradient, name)
        self.length = size // parts
        self.own = slice(part * self.length, (part + 1) * self.length)
        self.average = self.weight[self.own].clone()
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.average), torch.zeros_like(self.average)
        self.best: Tensor | None = None
        self._factor = self._part_of(rates or {})  # of the learning rate
        self._by_adam = self._part_of(dict.fromkeys(self.turned, 0.0))  # 0 where an orthogonal update takes its place

    def _part_of(self, values: Mapping[str, float]) -> Tensor | None:
        """This process's part of a vector that has a value at each of some parameters, else 1; None where all are 1."""
        known = values.keys() & self.slots.keys()
        if not known:
            return None
        whole = torch.ones_like(self.weight)
        for name in known:
            self.view(whole, name).fill_(values[name])
        return whole[self.own].clone()

    @property
    def names(self) -> list[str]:
        """Of the parameters."""
        return list(self.slots)

    def view(self, flat: Tensor, name: str) -> Tensor:
        """The part of a whole vector that belongs to a parameter, in its shape."""
        start, shape = self.slots[name]
        return flat[start : start + math.prod(shape)].view(shape)

    def ahead(self, gradient: Tensor, constants: AdamW) -> Tensor:
        """Where the mean of the gradients is heading (Nesterov), this process's part; before `update`."""
        keep = 1 - constants.beta1
        return self.exp_avg.lerp(gradient, keep).lerp_(gradient, keep)

    @property
    def turned_span(self) -> slice:
        """Of a whole vector, the part where the `turned` matrices are."""
        ends = [(start, start + math.prod(shape)) for start, shape in map(self.slots.__getitem__, self.turned)]
        return slice(min(start for start, _ in ends), max(end for _, end in ends))

    def orthogonal(self, ahead: Tensor, worker: int = 0, workers: int = 1) -> Tensor:
        """Orthogonal updates of the `turned` matrices, or of one worker's share of them; zero elsewhere.

        Args:
            ahead: of all parts [n].

        Returns:
            [n], whose sum over the workers has all of them.
        """
        found = torch.zeros_like(ahead)
        for name in _shares(self.turned, self.slots, workers)[worker]:
            self.view(found, name).copy_(orthogonalized(self.view(ahead, name)))
        return found

    def update(
        self, gradient: Tensor, constants: AdamW, *, rate: float, count: int, decay: float,
        orthogonal: Tensor | None = None,
    ) -> None:  # fmt: skip
        """One step of AdamW on this process's part, of Muon on `turned` matrices, then the running average.

        Args:
            gradient: this process's part [n / parts].
            orthogonal: what the method of that name gave.
            rate: learning rate.
            count: steps so far, this one included.
            decay: of the running average.
        """
        c, factor = constants, self._factor
        weight = self.weight[self.own]
        stop = min(max(self._decayed - self.own.start, 0), self.length)
        if c.weight_decay and stop:
            weight[:stop].mul_(
                1 - rate * c.weight_decay if factor is None else 1 - rate * c.weight_decay * factor[:stop]
            )
        self.exp_avg.lerp_(gradient, 1 - c.beta1)
        self.exp_avg_sq.mul_(c.beta2).addcmul_(gradient, gradient, value=1 - c.beta2)
        root = self.exp_avg_sq.sqrt().div_((1 - c.beta2**count) ** 0.5).add_(c.epsilon)
        step = self.exp_avg if factor is None else self.exp_avg * factor
        if orthogonal is not None and self._by_adam is not None:
            step = step * self._by_adam
            weight.add_(orthogonal if factor is None else orthogonal * factor, alpha=-rate)
        weight.addcdiv_(step, root, value=-rate / (1 - c.beta1**count))
        self.average.lerp_(weight, 1 - decay)

    def keep_best(self, *, average: bool) -> None:
        """Keep a copy of this process's part of the weights, or of their average, as the best so far."""
        self.best = (self.average if average else self.weight[self.own]).clone()

    def states(self) -> dict[str, Tensor]:
        """This process's part of all that a run needs to go on, by name (see `STATES`)."""
        found = {"weight": self.weight[self.own]} | {name: getattr(self, name) for name in STATES[1:]}
        return found if self.best is None else found | {BEST: self.best}

    def memory(self) -> int:
        """Bytes of all vectors."""
        vectors = (self.weight, self.gradient, *(v for name, v in self.states().items() if name != "weight"))
        return sum(vector.numel() * vector.element_size() for vector in vectors)


def _shares(names: Sequence[str], slots: Mapping[str, tuple[int, tuple[int, ...]]], workers: int) -> list[list[str]]:
    """The names that each of the workers makes orthogonal, about equal in time: the largest first, to who has least."""

    def cost(name: str) -> int:
        _, shape = slots[name]
        return max(shape) * min(shape) ** 2

    found: list[list[str]] = [[] for _ in range(workers)]
    spent = [0] * workers
    for name in sorted(names, key=lambda name: (-cost(name), name)):
        least = spent.index(min(spent))
        found[least].append(name)
        spent[least] += cost(name)
    return found
