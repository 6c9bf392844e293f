"""LCR: the locality-constrained repellence loss (paper Sec. 3.3: Eq. 4, Eq. 5, Eq. 6, Eq. 7)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from scemae.errors import OptionError
from scemae.training.stage2_config import Length, Locality, Reduction


def log_correspondence(
    descriptors: Tensor, temperature: float, keys: Tensor | None = None, normalise: Length = "unit"
) -> Tensor:
    """Logarithm of p(t_j | t_i), (B, T, T), of descriptors (B, T, C), Eq. 4, row i the query, itself among the keys.

    `normalise`: "unit" scales descriptors to unit length, since matching is by cosine; "none" is Eq. 4 as printed.
    `keys` (T, T): which j count for which i; None: all.
    """
    given = F.normalize(descriptors.float(), dim=-1) if normalise == "unit" else descriptors.float()
    with torch.autocast(given.device.type, enabled=False):  # at a low temperature bf16 would round the logits to tenths
        logits = given @ given.mT / temperature
    if keys is not None:
        logits = logits.masked_fill(~keys, -torch.inf)
    return logits.log_softmax(dim=-1)


def locality(positions: Tensor, form: Locality = "log-cells", cell: float = 8) -> Tensor:
    """f_loc (B, T, T) of token positions (B, T, 2) in cells (rows and columns): log(distance + 1), Eq. 5.

    Eq. 5 has no unit: the distance is in cells ("log-cells") or in pixels, `cell` to a cell ("log-pixels"). "root" is
    the square root of the distance in cells, as in ContrastLandmark (Cheng et al., 2021), which the paper starts from.
    """
    positions = positions.float()
    distance = torch.cdist(positions, positions, compute_mode="donot_use_mm_for_euclid_dist")
    if form == "root":
        return distance.sqrt()
    return (distance * cell if form == "log-pixels" else distance).log1p()


def repellence(attentive: Tensor, between_attentive: float, between_kinds: float, between_centers: float) -> Tensor:
    """lambda (T, T), Eq. 6, for T tokens of which `attentive` (T,) says which are attentive (the others: centers)."""
    kinds = attentive.long()[:, None] + attentive.long()[None]
    weights = torch.tensor([between_centers, between_kinds, between_attentive], device=attentive.device)
    return weights[kinds]


def lcr_loss(
    descriptors: Tensor,
    positions: Tensor,
    weights: Tensor,
    temperature: float,
    reduction: Reduction = "sum",
    keys: Tensor | None = None,
    form: Locality = "log-cells",
    normalise: Length = "unit",
    cell: float = 8,
) -> Tensor:
    """L_LCR, Eq. 7: sum of f_loc * lambda * p over all pairs of tokens, mean over the batch.

    Args:
        descriptors: (B, T, C), projected. positions: (B, T, 2), cells. weights: lambda (T, T).
        temperature, keys, normalise: see `log_correspondence`. form, cell: see `locality`.
        reduction: "sum" (the paper's) or "mean_query", that divided by T.
    """
    if reduction not in ("sum", "mean_query"):
        raise OptionError(f"reduction is {reduction!r}; it must be 'sum' or 'mean_query'.")
    p = log_correspondence(descriptors, temperature, keys, normalise).exp()
    terms = locality(positions, form, cell) * weights * p
    loss = terms.sum((1, 2)).mean()
    return loss if reduction == "sum" else loss / descriptors.shape[1]
