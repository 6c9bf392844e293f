"""Conformal quantiles: exact for independent ratios, groups counted once, and nan where there are too few."""

import numpy as np
import pytest

from scemae.calibration import Calibration, needed_groups


def points_of(ratios, groups=None):
    groups = np.arange(len(ratios)) if groups is None else groups
    return Calibration(ratios=np.asarray(ratios, dtype=float), groups=np.asarray(groups))


@pytest.mark.parametrize(("coverage", "needed"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.99, 99), (0.901, 10)])
def test_too_few_groups_for_a_coverage(coverage, needed):
    rng = np.random.default_rng(0)
    assert needed_groups(coverage) == needed
    assert np.isnan(points_of(rng.random(needed - 1)).quantile(coverage))
    ratios = rng.random(needed)
    assert points_of(ratios).quantile(coverage) == ratios.max()
    copies = points_of(rng.random(4 * (needed - 1)), np.repeat(np.arange(needed - 1), 4))  # as many faces are needed
    assert np.isnan(copies.quantile(coverage))


@pytest.mark.parametrize("count", [9, 10, 19, 20, 57, 99, 100, 400])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9])
def test_the_finite_sample_quantile_is_exact(count, coverage):
    """Of n independent ratios number ceil((n + 1) coverage), which covers a new one with at least that probability."""
    ratios = np.random.default_rng(count).permutation(count) + 1.0
    assert points_of(ratios).quantile(coverage) == np.ceil((count + 1) * coverage - 1e-9)


def test_points_that_agree_within_their_group_count_as_one():
    ratios = np.random.default_rng(1).random(30)
    repeated = points_of(np.repeat(ratios, 5), np.repeat(np.arange(30), 5))
    assert repeated.quantile(0.9) == points_of(ratios).quantile(0.9)


def test_a_group_of_many_points_weighs_as_much_as_one_of_few():
    """A video of 500 easy frames among 40 hard pictures does not make the radius small."""
    rng = np.random.default_rng(2)
    hard = 1 + rng.random(40)
    mixed = points_of(np.concatenate([hard, 0.1 * rng.random(500)]), np.concatenate([np.arange(40), np.full(500, 40)]))
    assert mixed.quantile(0.9) > np.quantile(hard, 0.85)


@pytest.mark.parametrize("points", [1, 5, 20])
@pytest.mark.parametrize("count", [10, 20, 50])
def test_a_planted_distribution_is_covered(count, points):
    """Points of one face share its difficulty; over many fits, 90 % of new points are within the quantile."""
    rng = np.random.default_rng(3)

    def draw_ratios(faces):
        own = rng.normal(size=(faces, points, 2)) + 0.7 * rng.normal(size=(faces, 1, 2))
        return np.linalg.norm(own, axis=-1) * np.exp(0.3 * rng.normal(size=(faces, 1)))

    new = draw_ratios(4000)
    groups = np.repeat(np.arange(count), points)
    covered = [(new <= points_of(draw_ratios(count).ravel(), groups).quantile(0.9)).mean() for _ in range(300)]
    assert 0.89 < np.mean(covered) < 0.93
