"""CARB: which tokens are kept (Eq. 1-3), on planted clusters and by hand."""

import itertools

import numpy as np
import pytest
import torch

from scemae.errors import OptionError
from scemae.model.backbone import Backbone
from scemae.model.config import BackboneConfig
from scemae.training.carb import cluster_centers, log_density, pairwise_distances, select, split_attentive


def planted(seed, outliers=3, width=192):
    """130 tokens: four tight clusters of different sizes, and a few tokens far from everything. (tokens, cluster)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [50, 40, 25, 15 - outliers]
    centres = torch.randn(4, width, generator=generator)
    member = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    tokens = centres[member] + 0.3 * torch.randn(len(member), width, generator=generator)
    far = 3 * torch.randn(outliers, width, generator=generator)
    order = torch.randperm(130, generator=generator)
    kinds = torch.cat([member, torch.full((outliers,), -1)])
    return torch.cat([tokens, far])[order][None], kinds[order]


def hits(density, count=20):
    """How many of the four planted clusters have a centre among the four found, on average."""
    total = 0
    for seed in range(count):
        tokens, kinds = planted(seed)
        centers = cluster_centers(pairwise_distances(tokens), 4, density, tokens.shape[-1])
        total += len({int(kind) for kind in kinds[centers[0]]} - {-1})
    return total / count


def test_planted_clusters_are_found():
    # protocol: the forms that the text describes find them all; the printed one picks outliers
    assert hits("knn") >= 3.9
    assert hits("mean") >= 3.9
    assert hits("paper_literal") <= 2


@pytest.mark.parametrize("density", ["knn", "mean", "paper_literal"])
def test_scores_are_numbers_where_exponentials_are_not(density):
    tokens, _ = planted(0)
    log_rho = log_density(pairwise_distances(tokens), density, 192)
    assert log_rho.isfinite().all()
    assert len(log_rho.unique()) > 100
    if density == "paper_literal":
        assert log_rho.exp().isinf().all()


def test_density_peaks_by_hand():
    # On a line: two groups of three. Densities by all distances ("mean"), deltas by hand.
    places = torch.tensor([0.0, 1.0, 2.0, 10.0, 11.0, 12.0])
    tokens = places[None, :, None]
    squared = (places[:, None] - places) ** 2
    torch.testing.assert_close(log_density(pairwise_distances(tokens), "mean", 1)[0], -squared.mean(1))
    # The densest by that measure are 2 and 10 (nearest to the middle), equally: the first counts as the peak.
    assert cluster_centers(pairwise_distances(tokens), 2, "mean", 1).tolist() == [[2, 3]]
    assert cluster_centers(pairwise_distances(tokens), 1, "mean", 1).tolist() == [[2]]


# Five tokens on a line. Of each in turn, by hand:
#   the squared distances to the others   1+4+16+100  1+1+9+81  4+1+4+64  16+9+4+36  100+81+64+36
#   and their sum                                121        92        73         65           281
FIVE = (0, 1, 2, 4, 10)
FIVE_DISTANCES = [[0, 1, 2, 4, 10], [1, 0, 1, 3, 9], [2, 1, 0, 2, 8], [4, 3, 2, 0, 6], [10, 9, 8, 6, 0]]


def on_a_line(places):
    return torch.tensor(places, dtype=torch.float32)[None, :, None]


def peaks(density, width, places=FIVE):
    """The places in the order of their scores: one more center adds the next."""
    distances = pairwise_distances(on_a_line(places))
    found = [set(cluster_centers(distances, count, density, width)[0].tolist()) for count in range(len(places) + 1)]
    return [places[(more - fewer).pop()] for fewer, more in itertools.pairwise(found)]


def test_densities_of_five_tokens_by_hand():
    distances = pairwise_distances(on_a_line(FIVE))
    assert distances[0].tolist() == FIVE_DISTANCES
    knn = log_density(distances, "knn", 100)[0].tolist()  # minus the mean over the 4 others, divided by the width
    assert knn == pytest.approx([-0.3025, -0.23, -0.1825, -0.1625, -0.7025])
    mean = log_density(distances, "mean", 100)[0].tolist()  # over all 5, itself too
    assert mean == pytest.approx([-0.242, -0.184, -0.146, -0.13, -0.562])
    assert log_density(distances, "paper_literal", 100)[0].tolist() == [121, 92, 73, 65, 281]  # Eq. 2 as printed


def test_density_peaks_of_five_tokens_by_hand():
    """The densest is at 4, then come 2, 1, 0 and 10.

    delta (Eq. 3): of 4 it is 6 (to 10, the farthest), of 2 it is 2 (to 4), of 1 and 0 it is 1, of 10 it is 6 (to 4).
    So log rho + log delta of 0, 1, 2, 4 and 10 is
        at width 100: -0.3025, -0.23, -0.1825 + 0.6931 = 0.5106, -0.1625 + 1.7918 = 1.6293, -0.7025 + 1.7918 = 1.0893;
        at width 20: -1.5125, -1.15, -0.9125 + 0.6931 = -0.2194, -0.8125 + 1.7918 = 0.9793, -3.5125 + 1.7918 = -1.7207.
    """
    assert peaks("knn", 100) == [4, 10, 2, 1, 0]
    assert peaks("knn", 20) == [4, 2, 1, 0, 10]
    # 10 passes 2 where (70.25 - 18.25) / width = log(6 / 2), at a width of 47.33 ...
    assert (peaks("knn", 47)[1], peaks("knn", 48)[1]) == (2, 10)
    # ... and with "mean" where (56.2 - 14.6) / width is, at 37.87.
    assert (peaks("mean", 37)[1], peaks("mean", 38)[1]) == (2, 10)


@pytest.mark.parametrize("scale", [1, 1000, 1 / 1000])
def test_neither_the_order_of_tokens_nor_a_common_scale_changes_their_scores(scale):
    places = tuple(scale * place for place in (2, 10, 0, 4, 1))
    assert peaks("knn", 100 * scale**2, places) == [scale * place for place in (4, 10, 2, 1, 0)]


def test_density_alone_would_choose_other_centers():
    distances = pairwise_distances(on_a_line(FIVE))
    assert log_density(distances, "knn", 100)[0].argsort(descending=True)[:2].tolist() == [3, 2]  # the neighbours 4, 2
    assert cluster_centers(distances, 2, "knn", 100).tolist() == [[3, 4]]  # 4 and 10


def test_the_printed_density_chooses_the_loneliest_by_hand():
    # The "densest" is 10. delta: 10 (10 to 0), 10 (0 to 10), 1 (1 to 0), 1 (2 to 1), 2 (4 to 2).
    # Scores: 281 + 2.30, 121 + 2.30, 92, 73, 65 + 0.69.
    assert peaks("paper_literal", 100) == [10, 0, 1, 2, 4]
    assert cluster_centers(pairwise_distances(on_a_line(FIVE)), 2, "paper_literal", 100).tolist() == [[0, 4]]


def test_the_density_is_that_of_five_neighbours():
    """Tokens at 0, 1 ... 10. Of 0: (1 + 4 + 9 + 16 + 25) / 5 = 11; 4 neighbours would give 7.5, and 6 15.2."""
    found = log_density(pairwise_distances(on_a_line(range(11))), "knn", 1)[0].tolist()
    # Of 1: 1, 1, 4, 9, 16. Of 2 to 8: 1, 1, 4, 4, 9.
    assert found == pytest.approx([-11, -6.2, *[-3.8] * 7, -6.2, -11])


def test_distances_keep_the_digits_of_near_tokens():
    assert pairwise_distances(on_a_line(FIVE) + 10_000)[0].tolist() == FIVE_DISTANCES  # whose squares take 27 bits
    half = pairwise_distances(on_a_line(FIVE).bfloat16())
    assert (half.dtype, half[0].tolist()) == (torch.float32, FIVE_DISTANCES)


def test_the_selection_by_hand():
    """The five tokens in 47 or 48 dimensions, where the second center changes (see above), among two attentive ones."""
    places, similarity = [3, 0, 1, 2, 7, 4, 10], [0.8, 0.1, 0.0, 0.2, 0.9, 0.1, 0.3]
    for width, centers, stand_ins in ((47, [2, 4], [3, 2, 2, 2, 7, 4, 4]), (48, [4, 10], [3, 4, 4, 4, 7, 4, 10])):
        tokens = torch.nn.functional.pad(on_a_line(places), (0, width - 1))
        selection = select(tokens, torch.tensor([similarity]), 2 / 7, 2, "knn")
        assert tokens[0, selection.attentive[0], 0].tolist() == [3, 7]
        assert tokens[0, selection.centers[0], 0].tolist() == centers
        assert tokens[0, selection.kept[0, selection.substitute[0]], 0].tolist() == stand_ins


def test_one_cluster_and_as_many_as_tokens():
    similarity = torch.tensor([[0.0, 1.0, 0.0, 0.0]])
    tokens = on_a_line([0, 5, 1, 3])
    # Squared distances to the two others: 1 + 9, 1 + 4, 9 + 4: the densest is at 1.
    assert select(tokens, similarity, 0.25, 1, "knn").kept.tolist() == [[1, 2]]
    assert select(tokens, similarity, 0.25, 3, "knn").kept.tolist() == [[1, 0, 2, 3]]
    assert select(tokens[:, :2], similarity[:, :2], 0.5, 1, "knn").kept.tolist() == [[1, 0]]  # alone


def test_identical_tokens_give_the_first_ones():
    centers = cluster_centers(pairwise_distances(torch.ones(2, 7, 3)), 3, "knn", 3)
    assert centers.tolist() == [[0, 1, 2]] * 2


def test_of_equally_dense_tokens_the_first_is_the_peak():
    """The corners of a cube in 7 dimensions: 7 neighbours each at distance 1, so all are equally dense."""
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=7)))[None]
    distances = pairwise_distances(corners)
    assert log_density(distances, "knn", 1)[0].tolist() == [-1] * 128
    assert cluster_centers(distances, 1, "knn", 1).tolist() == [[0]]  # delta is sqrt(7); that of all others is 1
    assert cluster_centers(distances, 3, "knn", 1).tolist() == [[0, 1, 2]]


def test_a_token_alone_has_a_density_of_one():
    assert log_density(torch.zeros(1, 1, 1), "knn", 4).tolist() == [[0]]


def test_attentive_split_rounds_down_and_prefers_the_first_of_equals():
    similarity = torch.zeros(1, 144)
    similarity[0, [140, 3]] = 1
    for ratio, count in ((0.1, 14), (0.25, 36), (0.001, 1)):
        attentive, inattentive = split_attentive(similarity, ratio)
        assert attentive.shape[1] == count
        assert sorted(attentive[0].tolist() + inattentive[0].tolist()) == list(range(144))
    assert split_attentive(similarity, 0.104)[0].shape[1] == 14  # 14.98
    assert split_attentive(similarity[:, :100], 0.29)[0].shape[1] == 29  # 28.999999999999996 in floating point
    attentive, _ = split_attentive(similarity, 4 / 144)
    assert attentive.tolist() == [[0, 1, 3, 140]]


def test_every_token_is_stood_for_by_itself_or_its_nearest_center():
    tokens, _ = planted(1)
    tokens = torch.cat([tokens, 30 + torch.randn(1, 14, 192)], dim=1)
    similarity = torch.zeros(1, 144)
    similarity[:, 130:] = 1
    selection = select(tokens, similarity, 0.1, 4, "knn")
    assert selection.attentive.tolist() == [list(range(130, 144))]
    assert (selection.centers < 130).all()
    assert (selection.centers.diff() > 0).all()
    stand_ins = selection.kept.gather(1, selection.substitute)
    assert (stand_ins[0, 130:] == torch.arange(130, 144)).all()
    distances = (tokens[0, :130, None] - tokens[0, selection.centers[0]]).norm(dim=-1)
    assert (stand_ins[0, :130] == selection.centers[0, distances.argmin(1)]).all()
    assert (stand_ins[0, selection.centers[0]] == selection.centers[0]).all()


def test_centers_stand_for_themselves_where_tokens_are_equal():
    selection = select(torch.ones(1, 12, 4), torch.arange(12.0)[None], 0.25, 3, "knn")
    stand_ins = selection.kept.gather(1, selection.substitute)
    assert stand_ins[0, selection.kept[0]].tolist() == selection.kept[0].tolist()


def test_all_tokens_can_be_attentive():
    selection = select(torch.randn(2, 12, 4), torch.rand(2, 12), 1.0, 0, "knn")
    assert selection.kept.tolist() == [list(range(12))] * 2
    assert torch.equal(selection.kept.gather(1, selection.substitute), selection.kept)


def test_more_clusters_than_tokens_are_refused():
    with pytest.raises(OptionError, match="num_clusters is 9; there are 8"):
        select(torch.ones(1, 12, 4), torch.zeros(1, 12), 0.34, 9, "knn")
    with pytest.raises(OptionError, match="num_clusters is 0; there are 8"):
        select(torch.ones(1, 12, 4), torch.zeros(1, 12), 0.34, 0, "knn")
    with pytest.raises(OptionError, match="num_clusters is 2; there are 0"):
        select(torch.ones(1, 12, 4), torch.zeros(1, 12), 1.0, 2, "knn")
    with pytest.raises(OptionError, match="density is 'other'"):
        select(torch.ones(1, 12, 4), torch.zeros(1, 12), 0.34, 2, "other")


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return Backbone(BackboneConfig(width=24, heads=3, depth=4, params=0), 96, 8).eval()


def test_cls_similarity_is_the_attention_of_the_block(backbone, monkeypatch):
    """Against the attention weights (B, heads, 145, 145) that timm's own block computes, read where it drops some."""
    tokens = backbone.run_blocks(backbone.prepend_cls(backbone.embed(torch.randn(2, 3, 96, 96))), 0, 2)
    attention = backbone.vit.blocks[2].attn
    monkeypatch.setattr(attention, "fused_attn", False)
    seen = []
    with attention.attn_drop.register_forward_hook(lambda module, given, dropped: seen.append(dropped)):
        backbone.vit.blocks[2](tokens)
    (weights,) = seen
    normed = backbone.vit.blocks[2].norm1(tokens)
    torch.testing.assert_close(backbone.cls_similarity(tokens, 2), weights[:, :, 0, 1:].mean(1))
    whole = attention.qkv(normed).view(2, 145, 3, 24)
    literal = (torch.einsum("bd,bnd->bn", whole[:, 0, 0], whole[:, 1:, 1]) / 24**0.5).softmax(-1)
    torch.testing.assert_close(backbone.cls_similarity(tokens, 2, mean_heads=False), literal)
    assert not np.allclose(literal.detach(), weights[:, :, 0, 1:].mean(1).detach(), atol=1e-4)


def test_encoding_in_steps_is_encoding_at_once(backbone):
    embedded = backbone.embed(torch.randn(2, 3, 96, 96))
    tokens = backbone.run_blocks(backbone.prepend_cls(embedded), 0, 2)
    stepped = backbone.run_blocks(backbone.run_blocks(tokens, 2, 3), 3)
    torch.testing.assert_close(stepped, backbone.encode(embedded))
