"""How well one list puts another in order."""

import math

import numpy as np
import pytest

from gfm_calc.ranks import rank_correlation


def test_order_alone_counts():
    first = np.array([3.0, 1.0, 2.0, 8.0])
    assert rank_correlation(first, np.exp(first)) == pytest.approx(1.0)
    assert rank_correlation(first, -(first**3)) == pytest.approx(-1.0)
    assert rank_correlation(first, np.array([1.0, 2.0, 3.0, 4.0])) == pytest.approx(0.4)  # 1 - 6 * 6 / 60


@pytest.mark.parametrize(
    "first, second",
    [([], []), ([1.0, 2.0], [1.0, 2.0]), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [4.0, 4.0, 4.0])],
)
def test_no_order_to_speak_of(first, second):
    assert math.isnan(rank_correlation(np.array(first), np.array(second)))


def test_two_are_an_order_where_the_caller_says_so():
    assert rank_correlation(np.array([1.0, 2.0]), np.array([5.0, 4.0]), fewest=2) == pytest.approx(-1.0)
