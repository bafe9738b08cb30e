"""Single-process training of a multi-head model: `python -m gfm_calc.train RECIPE --data DIR -o RUN`."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from ase.data import chemical_symbols

from gfm_calc.artifacts import write_file
from gfm_calc.checkpoint import save_model
from gfm_calc.config import HeadSpec, ModelConfig, from_mapping, read_toml
from gfm_calc.graph import AtomicGraph, GraphBatch
from gfm_calc.model import GFMModel
from gfm_calc.train.frames import TRAIN, Frames, fit_reference_energies, load_frames
from gfm_calc.train.objective import Labels, batch_loss


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The [training] table of a recipe.  Weights are of eV/atom, eV/Å and eV/Å³ errors; `ema` is the decay a step."""

    seed: int
    steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup: int
    weight_decay: float
    clip: float
    ema: float
    energy_weight: float
    force_weight: float
    stress_weight: float
    save_every: int


class Sampler:
    """Batches as a pure function of (seed, step): a head by its sampling weight, then a frame of that head."""

    def __init__(self, frames: Frames, weights: Mapping[str, float], seed: int, batch_size: int):
        self.pools = [frames.select(head, TRAIN) for head in frames.heads]
        share = np.array([weights[head] for head in frames.heads])
        self.share, self.seed, self.batch_size = share / share.sum(), seed, batch_size

    def batch(self, step: int) -> np.ndarray:
        """Indices of the frames of one step, [batch_size]."""
        random = np.random.default_rng([self.seed, step])
        heads = np.sort(random.choice(len(self.share), size=self.batch_size, p=self.share))
        return np.array([self.pools[h][random.integers(len(self.pools[h]))] for h in heads])


class Trainer:
    """One model, one optimiser, one running average of the weights; `run` reads top to bottom."""

    def __init__(
        self, model: GFMModel, frames: Frames, config: TrainingConfig, weights: Mapping[str, float], run: Path
    ):
        self.model, self.frames, self.config, self.folder = model, frames, config, run
        self.sampler = Sampler(frames, weights, config.seed, config.batch_size)
        decayed = [p for n, p in model.named_parameters() if p.ndim >= 2 and "shift" not in n and "embedding" not in n]
        rest = [p for p in model.parameters() if all(p is not d for d in decayed)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.parameters: list[torch.Tensor] = list(model.parameters())
        self.average = [p.detach().clone() for p in self.parameters]
        self.step = 0

    def run(self, loss_function=batch_loss) -> None:
        """Train to the last step, logging a line every 50 and saving every `save_every`."""
        since, parts, counted = time.perf_counter(), torch.zeros(3), 0
        while self.step < self.config.steps:
            inputs, labels = self.load(self.sampler.batch(self.step))
            rate = self.learning_rate(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            vectors = inputs.edge_vector.detach().requires_grad_()
            loss, found = loss_function(self.model, vectors, inputs, labels)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.config.clip)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"step {self.step}: the gradient is not finite")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1
            decay = min(self.config.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
            parts, counted = parts + found, counted + 1
            if self.step % 50 == 0:
                now = time.perf_counter()
                pace = counted * self.config.batch_size / (now - since)
                self.log(step=self.step, loss=float(loss.detach()), parts=(parts / counted).tolist(), lr=rate,
                         grad_norm=float(norm), structures_per_s=pace)  # fmt: skip
                since, parts, counted = now, torch.zeros(3), 0
            if self.step % self.config.save_every == 0 or self.step == self.config.steps:
                self.save()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine to the final rate."""
        c = self.config
        if step < c.warmup:
            return c.learning_rate * (step + 1) / c.warmup
        progress = (step - c.warmup) / max(1, c.steps - c.warmup)
        return c.final_learning_rate + 0.5 * (c.learning_rate - c.final_learning_rate) * (
            1 + math.cos(math.pi * progress)
        )

    def load(self, indices: np.ndarray):
        """Frames -> (ModelInputs, Labels), through the graph path that every user of the model takes."""
        frames, model, c = self.frames, self.model, self.config
        graphs = [AtomicGraph.build(frames.atoms(k), model.config.cutoff) for k in indices]
        batch = GraphBatch.from_graphs(graphs)
        rows = np.concatenate([np.arange(frames.ptr[k], frames.ptr[k + 1]) for k in indices])
        sizes = (frames.ptr[indices + 1] - frames.ptr[indices]).astype(np.float64)
        heads = torch.as_tensor(np.repeat(frames.head[indices], sizes.astype(int)))
        references = model.energy_stack.reference[heads, batch.atomic_numbers]
        reference = torch.zeros(len(indices), dtype=torch.float64).index_add(0, batch.batch, references)
        forces, stress = frames.forces[rows], frames.stress[indices]
        length = np.linalg.norm(forces, axis=1)
        has_force, has_stress = np.isfinite(length), np.isfinite(stress).all(axis=(1, 2))
        # Frames count equally, whatever their size; very large forces count less.
        force_weight = np.where(has_force, 1 / (1 + np.nan_to_num(length) / 10), 0) / np.repeat(
            sizes, sizes.astype(int)
        )
        volume = np.where(has_stress, np.abs(np.linalg.det(frames.cell[indices])), 1.0)
        size = len(indices)

        def tensor(array):
            return torch.as_tensor(np.asarray(array), dtype=model.dtype)

        labels = Labels(
            atom_head=heads, energy=(torch.as_tensor(frames.energy[indices]) - reference).to(model.dtype),
            forces=tensor(np.nan_to_num(forces)), stress=tensor(np.nan_to_num(stress)), atoms=tensor(sizes),
            volume=tensor(volume), energy_weight=tensor(np.full(size, c.energy_weight / size)),
            force_weight=tensor(c.force_weight * force_weight / size),
            stress_weight=tensor(c.stress_weight * has_stress / size),
        )  # fmt: skip
        return model.inputs(batch), labels

    def log(self, **line: Any) -> None:
        """Append a JSON line to RUN/log.jsonl."""
        with open(self.folder / "log.jsonl", "a") as handle:
            handle.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """RUN/model (averaged weights, a complete model) and RUN/state (what a later run needs to go on)."""
        state = {f"p{k}": p.detach() for k, p in enumerate(self.parameters)}
        state |= {f"a{k}": a for k, a in enumerate(self.average)}
        for k, parameter in enumerate(self.parameters):  # a parameter that no label has reached yet has no moments
            state |= {f"{name}{k}": tensor for name, tensor in self.optimizer.state.get(parameter, {}).items()}
        state["at"] = torch.tensor(self.step)
        write_file(self.folder / "state.safetensors", safetensors.torch.save(state))
        kept = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.average)
            save_model(self.model, self.folder / "model", provenance={"step": self.step, **self.provenance()})
            torch._foreach_copy_(self.parameters, kept)

    def resume(self) -> None:
        """Continue from RUN/state.safetensors where it is there."""
        path = self.folder / "state.safetensors"
        if not path.exists():
            return
        state = safetensors.torch.load(path.read_bytes())
        self.step = int(state["at"])
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, [state[f"p{k}"] for k in range(len(self.parameters))])
        self.average = [state[f"a{k}"] for k in range(len(self.parameters))]
        for k, parameter in enumerate(self.parameters):
            if f"exp_avg{k}" in state:
                self.optimizer.state[parameter] = {n: state[f"{n}{k}"] for n in ("exp_avg", "exp_avg_sq", "step")}

    def provenance(self) -> dict[str, Any]:
        """What is kept with the weights."""
        versions = {"torch": torch.__version__, "numpy": np.__version__}
        return {"recipe": "gfm-small.toml", "training": dict(self.config.__dict__), "versions": versions}


def head_specs(recipe: Mapping[str, Any], frames: Frames) -> list[HeadSpec]:
    """Head cards from the recipe and the training split: elements, domain, reference energies, sources."""
    specs = []
    for entry in recipe["heads"]:
        values = {k: v for k, v in entry.items() if k not in ("sampling", "files")}
        indices = frames.select(entry["name"], TRAIN)
        rows = np.concatenate([np.arange(frames.ptr[k], frames.ptr[k + 1]) for k in indices])
        elements = tuple(chemical_symbols[z] for z in np.unique(frames.numbers[rows]))
        given = values.pop("reference_energies", None)
        references = given if given is not None else fit_reference_energies(frames, indices)
        data = [{**f, "frames": int((frames.source[indices] == f["name"]).sum())} for f in entry["files"]]
        periodic = frames.pbc[indices].all(axis=1)
        kinds = [kind for kind, seen in (("molecule", ~periodic), ("bulk", periodic)) if seen.any()]
        values |= {
            "elements": elements, "reference_energies": {s: references[s] for s in elements}, "training_data": data,
            "charges": (int(frames.charge[indices].min()), int(frames.charge[indices].max())), "periodicity": kinds,
        }  # fmt: skip
        specs.append(from_mapping(HeadSpec, values, f"head {entry['name']}"))
    return specs


def initialise_heads(model: GFMModel, frames: Frames) -> None:
    """Set each head's scale (rms force) and shift by element (fitted minus reference energy) from the training split."""
    stack = model.energy_stack
    for row, head in enumerate(model.energy_heads):
        indices = frames.select(head, TRAIN)
        fitted = fit_reference_energies(frames, indices)
        for symbol, energy in fitted.items():
            z = chemical_symbols.index(symbol)
            stack.shift.data[row, z] = energy - float(stack.reference[row, z])
        rows = np.concatenate([np.arange(frames.ptr[k], frames.ptr[k + 1]) for k in indices])
        scale = np.sqrt(np.nanmean(np.clip(frames.forces[rows], -10, 10) ** 2))
        stack.scale[row] = float(np.clip(scale, 0.3, 3.0))


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m gfm_calc.train", description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with the recipe's .extxyz.xz files")
    parser.add_argument("-o", "--output", type=Path, required=True, help="run folder; an interrupted run there goes on")
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--compile", action="store_true", help="compile the whole training step")
    options = parser.parse_args(argv)
    recipe = read_toml(options.recipe)
    if options.steps is not None:
        recipe["training"]["steps"] = options.steps
    config = from_mapping(TrainingConfig, recipe["training"], f"{options.recipe}: training")
    files = {h["name"]: [options.data / f"{f['name']}.extxyz.xz" for f in h["files"]] for h in recipe["heads"]}
    options.output.mkdir(parents=True, exist_ok=True)
    frames = load_frames(files, cache=options.output / "frames.npz")
    torch.manual_seed(config.seed)
    model = GFMModel(from_mapping(ModelConfig, recipe["model"], f"{options.recipe}: model"), head_specs(recipe, frames))
    initialise_heads(model, frames)
    trainer = Trainer(model, frames, config, {h["name"]: h["sampling"] for h in recipe["heads"]}, options.output)
    trainer.resume()
    if not options.compile:
        trainer.run()
        return
    from torch._dynamo import config as dynamo_config

    with dynamo_config.patch(trace_autograd_ops=True):
        trainer.run(torch.compile(batch_loss, dynamic=True, fullgraph=True))
