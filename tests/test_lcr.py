"""The LCR loss (Eq. 4-7) against values computed by hand."""

import math

import pytest
import torch

from scemae.errors import OptionError
from scemae.training.lcr import lcr_loss, locality, log_correspondence, repellence


def test_identical_features_by_hand():
    # Attentive at (0, 0) and (0, 3), a center at (4, 0); p = 1/3: distances 3, 4, 5 with lambda 5 each.
    positions = torch.tensor([[[0, 0], [0, 3], [4, 0]]])
    weights = repellence(torch.tensor([True, True, False]), 5.0, 5.0, 2.0)
    loss = lcr_loss(torch.ones(1, 3, 8), positions, weights, 1 / 7)
    assert float(loss) == pytest.approx(10 / 3 * math.log(120), abs=1e-5)


def test_four_tokens_by_hand():
    positions = torch.tensor([[[0, 0], [0, 3], [4, 0], [11, 11]]])
    weights = repellence(torch.tensor([True, True, False, False]), 5.0, 5.0, 2.0)
    descriptors = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]]])
    assert float(lcr_loss(descriptors, positions, weights, 1 / 7)) == pytest.approx(3.711694435, abs=1e-5)
    twice = torch.cat([descriptors, 5 * descriptors])  # the length of a descriptor does not matter
    loss = lcr_loss(twice, positions.expand(2, -1, -1), weights, 1 / 7, "mean_query")
    assert float(loss) == pytest.approx(3.711694435 / 4, abs=1e-5)


def test_repellence_names_the_kinds_of_pairs():
    weights = repellence(torch.tensor([True, False, True]), 7.0, 5.0, 2.0)
    assert weights.tolist() == [[7, 5, 7], [5, 2, 5], [7, 5, 7]]


def test_locality_is_in_cells_with_the_natural_logarithm():
    found = locality(torch.tensor([[[0, 0], [0, 1], [11, 11]]]))[0]
    assert found[0].tolist() == pytest.approx([0, math.log(2), math.log(1 + 11 * 2**0.5)], abs=1e-6)
    assert torch.equal(found, found.T)


def test_locality_before_lcr_is_a_root():
    positions = torch.tensor([[[0, 0], [0, 4]]])
    assert locality(positions, "root")[0].tolist() == [[0, 2], [2, 0]]
    loss = lcr_loss(torch.ones(1, 2, 3), positions, torch.ones(2, 2), 1.0, form="root")
    assert float(loss) == pytest.approx(2.0)  # half of each token's correspondence, at distance 4


def test_correspondence_counts_the_token_itself():
    p = log_correspondence(torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]), 0.5).exp()[0]
    assert p[0].tolist() == pytest.approx([math.exp(2) / (math.exp(2) + 1), 1 / (math.exp(2) + 1)], abs=1e-6)


def test_keys_say_which_tokens_count():
    descriptors = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    others = ~torch.eye(3, dtype=torch.bool)
    p = log_correspondence(descriptors, 0.5, others).exp()[0]
    assert p[0].tolist() == pytest.approx([0, 1 / (1 + math.exp(2)), math.exp(2) / (1 + math.exp(2))], abs=1e-6)
    positions = torch.tensor([[[0, 0], [0, 1], [0, 2]]])
    loss = lcr_loss(descriptors, positions, torch.ones(3, 3), 0.5, keys=others)
    near, far = 1 / (1 + math.exp(2)), math.exp(2) / (1 + math.exp(2))
    wanted = 2 * (near * math.log(2) + far * math.log(3)) + math.log(2)
    assert float(loss) == pytest.approx(wanted, abs=1e-5)


# Three tokens on a line, at 0, 1 and 3 cells, the first and the last alike. exp(1 / tau) is 2: those count 2 for each
# other and for themselves, and 1 for the second. f_loc: log 2 (0 to 1), log 4 (0 to 3), log 3 (1 to 3).
THREE = torch.tensor([[[1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]])
THREE_PLACES = torch.tensor([[[0, 0], [0, 1], [0, 3]]])
TAU = 1 / math.log(2)


def test_rows_are_queries_by_hand():
    p = log_correspondence(THREE, TAU).exp()
    torch.testing.assert_close(p, torch.tensor([[[0.4, 0.2, 0.4], [0.25, 0.5, 0.25], [0.4, 0.2, 0.4]]]))
    earlier = torch.ones(3, 3, dtype=torch.bool).tril()  # each query has itself and those before it as keys
    p = log_correspondence(THREE, TAU, earlier).exp()
    torch.testing.assert_close(p, torch.tensor([[[1.0, 0.0, 0.0], [1 / 3, 2 / 3, 0.0], [0.4, 0.2, 0.4]]]))
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]])
    first = math.log(2) * (2 * 0.2 + 4 * 0.25)
    wanted = first + math.log(4) * (3 * 0.4 + 7 * 0.4) + math.log(3) * (6 * 0.25 + 8 * 0.2)
    assert float(lcr_loss(THREE, THREE_PLACES, weights, TAU)) == pytest.approx(wanted, rel=1e-5)


def test_the_loss_is_the_mean_over_the_faces_by_hand():
    descriptors = torch.cat([THREE, torch.ones(1, 3, 2)])
    positions = torch.cat([THREE_PLACES, torch.tensor([[[5, 5], [5, 7], [5, 7]]])])
    first = math.log(2) * (0.2 + 0.25) + math.log(4) * 2 * 0.4 + math.log(3) * (0.25 + 0.2)
    second = 4 * math.log(3) / 3  # 2 cells between the first and the others
    loss = lcr_loss(descriptors, positions, torch.ones(3, 3), TAU)
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-5)


def test_places_between_cells_have_their_own_distance():
    found = locality(torch.tensor([[[7.1, 10.2], [7.4, 10.6], [7.1, 10.2]]]))[0]
    assert found[0, 1:].tolist() == pytest.approx([math.log(1.5), 0], abs=1e-5)
    assert found.diagonal().tolist() == [0, 0, 0]
    assert torch.equal(locality(THREE_PLACES + 10_000), locality(THREE_PLACES))


def test_the_loss_vanishes_where_each_token_is_like_itself_only():
    loss = lcr_loss(torch.eye(18)[None], torch.rand(1, 18, 2) * 11, torch.full((18, 18), 5.0), 0.01)
    assert float(loss) < 1e-3


def test_half_precision_is_computed_in_float32():
    descriptors = torch.randn(1, 18, 64)
    positions, weights = torch.rand(1, 18, 2) * 11, torch.full((18, 18), 5.0)
    exact = lcr_loss(descriptors.bfloat16().float(), positions, weights, 1 / 7)
    assert float(lcr_loss(descriptors.bfloat16(), positions, weights, 1 / 7)) == pytest.approx(float(exact), rel=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = lcr_loss(descriptors.bfloat16().float(), positions, weights, 1 / 7)
    assert float(within) == pytest.approx(float(exact), rel=1e-6)


def test_another_reduction_is_refused():
    with pytest.raises(OptionError, match="reduction is 'mean'"):
        lcr_loss(torch.ones(1, 2, 2), torch.ones(1, 2, 2), torch.ones(2, 2), 1.0, "mean")
