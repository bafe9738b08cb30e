"""Sampling: pure functions of (seed, step, rank, world), budgets kept, every structure seen."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gfm_calc.data import sampling
from gfm_calc.data.sampling import PERIOD, SamplingPlan, batches, deal, draws, permuted
from gfm_calc.errors import ConfigError

PLANS = st.builds(
    SamplingPlan, counts=st.lists(st.integers(1, 400), min_size=1, max_size=5).map(tuple), seed=st.integers(0, 2**40),
    structures=st.integers(1, 300), tau=st.sampled_from([0.0, 0.3, 0.5, 1.0, 1.7]),
)  # fmt: skip


def sizes_of(drawn, columns: int = 2):
    """Atoms and edges of a draw, as any pure function of head and index."""
    atoms = 1 + (drawn.index * 7 + drawn.head * 3) % 50
    return np.stack([atoms, atoms * (5 + drawn.index % 30)], axis=1)[:, :columns]


GOLDEN_ORDER = [934, 204, 917, 689, 488, 638]
GOLDEN_DRAWS = [(2, 43), (1, 46), (2, 890), (2, 891), (2, 725), (1, 57), (2, 63), (2, 457)]


@given(PLANS, st.integers(0, 3000))
@settings(deadline=None)
def test_every_step_has_each_heads_share(plan, step):
    """Give or take two: one for each end of the step."""
    drawn = np.bincount(draws(plan, step).head, minlength=len(plan.counts))
    assert (np.abs(drawn - plan.weights() * plan.structures) <= 2.1).all()


# ---- permutations ----


@given(st.integers(0, 2**64), st.integers(0, 10**9), st.integers(1, 3000))
@settings(deadline=None)
def test_permuted_is_a_permutation(seed, stream, count):
    assert sorted(permuted(seed, stream, count, np.arange(count)).tolist()) == list(range(count))


def test_permuted_needs_only_what_is_asked_for():
    whole = permuted(3, 4, 1000, np.arange(1000))
    assert np.array_equal(permuted(3, 4, 1000, np.array([17, 5, 999])), whole[[17, 5, 999]])
    huge = permuted(3, 4, 10**12, np.arange(5))
    assert len(set(huge.tolist())) == 5 and huge.max() < 10**12


def test_permutations_are_well_mixed():
    count = 5000
    orders = np.stack([permuted(seed, 0, count, np.arange(count)) for seed in range(40)])
    assert abs(np.corrcoef(orders[0], np.arange(count))[0, 1]) < 0.05
    assert abs(np.corrcoef(orders[0][1:], orders[0][:-1])[0, 1]) < 0.05
    assert abs(np.corrcoef(orders[0], orders[1])[0, 1]) < 0.05
    # Where item 0 goes is spread evenly: 40 draws, mean of a uniform distribution within four standard errors.
    assert abs(orders[:, 0].mean() / count - 0.5) < 4 * np.sqrt(1 / 12 / 40)


def test_the_numbers_never_change():
    """Golden: a run that is resumed by a later version must go on with the same batches."""
    assert permuted(7, 1, 1000, np.arange(6)).tolist() == GOLDEN_ORDER
    drawn = draws(SamplingPlan(counts=(10, 100, 1000), seed=7, structures=8, tau=0.5), 3)
    assert list(zip(drawn.head.tolist(), drawn.index.tolist())) == GOLDEN_DRAWS


# ---- draws ----


@given(PLANS, st.integers(0, 10**7))
@settings(deadline=None, max_examples=40)
def test_draws_are_pure_and_in_range(plan, step):
    first = draws(plan, step)
    sampling._period.cache_clear()
    again = draws(replace(plan), step)
    assert np.array_equal(first.head, again.head) and np.array_equal(first.index, again.index)
    assert len(first) == plan.structures
    assert (first.index >= 0).all() and (first.index < np.array(plan.counts)[first.head]).all()


@given(st.lists(st.integers(1, 60), min_size=1, max_size=4).map(tuple), st.integers(0, 99), st.integers(1, 50))
@settings(deadline=None, max_examples=25)
def test_every_structure_is_seen_before_any_comes_again(counts, seed, structures):
    plan = SamplingPlan(counts=counts, seed=seed, structures=structures, tau=0.7)
    seen = [[] for _ in counts]
    for step in range(-(-600 // structures)):
        drawn = draws(plan, step)
        for head, index in zip(drawn.head.tolist(), drawn.index.tolist()):
            seen[head].append(index)
    for count, order in zip(counts, seen):
        for start in range(0, len(order), count):
            part = order[start : start + count]
            assert len(set(part)) == len(part), "one came again before all were seen"


@given(PLANS, st.integers(1, 7), st.integers(0, 50))
@settings(deadline=None, max_examples=30)
def test_the_stream_does_not_depend_on_how_it_is_cut(plan, factor, step):
    wide = draws(replace(plan, structures=plan.structures * factor), step)
    narrow = [draws(plan, step * factor + k) for k in range(factor)]
    assert np.array_equal(wide.head, np.concatenate([d.head for d in narrow]))
    assert np.array_equal(wide.index, np.concatenate([d.index for d in narrow]))


@pytest.mark.parametrize("tau", [0.0, 0.5, 1.0])
def test_temperature(tau):
    counts = (10, 1000, 20_000)
    plan = SamplingPlan(counts=counts, seed=0, structures=PERIOD, tau=tau)
    weights = np.array(counts, float) ** tau
    assert plan.weights() == pytest.approx(weights / weights.sum())
    drawn = np.bincount(draws(plan, 2).head, minlength=3)
    assert np.abs(drawn / PERIOD - plan.weights()).max() < 3e-5
    quarter = np.bincount(draws(replace(plan, structures=PERIOD // 4), 5).head, minlength=3)
    assert np.abs(quarter / (PERIOD // 4) - plan.weights()).max() < 0.02, "a part of a period has about the same shares"


def test_shares_take_the_place_of_temperature():
    plan = SamplingPlan(counts=(5, 5000), seed=0, structures=PERIOD, shares=(3, 1))
    assert np.bincount(draws(plan, 0).head) / PERIOD == pytest.approx([0.75, 0.25], abs=1e-4)


def test_a_tiny_head_is_not_forgotten():
    plan = SamplingPlan(counts=(1, 10**9), seed=0, structures=PERIOD)
    assert (draws(plan, 0).head == 0).sum() == 1


def test_memory_does_not_grow_with_the_number_of_structures():
    drawn = draws(SamplingPlan(counts=(10**15,), seed=1, structures=100), 10**9)
    assert len(set(drawn.index.tolist())) == 100


# ---- batches ----


@given(PLANS, st.integers(0, 1000), st.integers(1, 5), st.integers(20, 400), st.integers(100, 9000))
@settings(deadline=None, max_examples=60)
def test_ranks_share_a_step_within_the_budget(plan, step, world, max_atoms, max_edges):
    drawn = draws(plan, step)
    parts = [batches(plan, step, r, world, sizes=sizes_of, budget=(max_atoms, max_edges)) for r in range(world)]
    got = Counter((h, i) for part in parts for batch in part for h, i in zip(batch.head.tolist(), batch.index.tolist()))
    assert got == Counter(zip(drawn.head.tolist(), drawn.index.tolist())), "each draw belongs to one batch of one rank"
    for batch in (batch for part in parts for batch in part):
        cost = sizes_of(batch).sum(axis=0)
        assert len(batch) == 1 or (cost <= (max_atoms, max_edges)).all()
    assert max(map(len, parts)) - min(map(len, parts)) <= 1 or len(drawn) < sum(map(len, parts)) + world


@given(st.lists(st.integers(0, 100), min_size=1, max_size=80), st.integers(1, 6), st.integers(100, 1000))
@settings(deadline=None)
def test_deal(sizes, world, limit):
    bins = deal(np.array(sizes)[:, None], [limit], world)
    assert len(bins) % world == 0
    assert sorted(k for part in bins for k in part.tolist()) == list(range(len(sizes)))
    assert all(sum(sizes[k] for k in part) <= limit for part in bins)
    needed = -(-sum(sizes) // limit)
    assert len(bins) <= world * (2 * -(-max(needed, 1) // world) + 1), "far more bins than needed"


def test_deal_balances():
    random = np.random.default_rng(0)
    sizes = random.integers(3, 200, (512, 1))
    loads = np.array([sizes[part].sum() for part in deal(sizes, [8192], 8)])
    assert loads.max() / loads.mean() < 1.01


def test_what_fits_nowhere_is_alone():
    bins = deal(np.array([[5], [500], [6], [700]]), [100], 2)
    assert [part.tolist() for part in bins if len(part) == 1][:2] == [[1], [3]]
    assert sorted(k for part in bins for k in part.tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"counts": ()}, {"counts": (3, 0)}, {"structures": 0}, {"seed": -1}, {"tau": -1}, {"tau": float("nan")},
        {"shares": (1.0,)}, {"shares": (1.0, 0.0)}, {"shares": (1.0, float("inf"))},
    ],
)  # fmt: skip
def test_impossible_plans(values):
    with pytest.raises(ConfigError):
        SamplingPlan(**{"counts": (3, 4), "seed": 0, "structures": 2, **values})


def test_impossible_calls():
    plan = SamplingPlan(counts=(3,), seed=0, structures=2)
    with pytest.raises(ConfigError, match="step"):
        draws(plan, -1)
    with pytest.raises(ConfigError, match="rank"):
        batches(plan, 0, 2, 2, sizes=sizes_of, budget=(5, 5))
    with pytest.raises(ConfigError, match="budget"):
        deal(np.ones((3, 2)), [1.0])
    with pytest.raises(ConfigError, match="budget"):
        deal(np.ones((3, 1)), [0.0])
