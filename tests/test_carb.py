"""CARB: which tokens are kept (Eq. 1-3), on planted clusters and by hand."""

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


def test_identical_tokens_give_the_first_ones():
    centers = cluster_centers(pairwise_distances(torch.ones(2, 7, 3)), 3, "knn", 3)
    assert centers.tolist() == [[0, 1, 2]] * 2


def test_attentive_split_rounds_down_and_prefers_the_first_of_equals():
    similarity = torch.zeros(1, 144)
    similarity[0, [140, 3]] = 1
    for ratio, count in ((0.1, 14), (0.25, 36), (0.001, 1)):
        attentive, inattentive = split_attentive(similarity, ratio)
        assert attentive.shape[1] == count
        assert sorted(attentive[0].tolist() + inattentive[0].tolist()) == list(range(144))
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
