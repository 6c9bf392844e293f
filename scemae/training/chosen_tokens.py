"""The tokens that CARB chooses of faces (paper Sec. 3.2), kept where faces are not moved, and where they lie."""

from __future__ import annotations

import torch
from torch import Tensor

from scemae.model.backbone import Backbone, gather_tokens
from scemae.training.carb import Selection, select
from scemae.training.stage2_config import Stage2Config

CACHE_BYTES = 4 * 2**30  # that the tokens of unmoved faces may take on a CPU; on a GPU half of what is free
CENTRE = 0.5  # of the side of the map: 6 x 6 of 12 x 12 cells


def choose_tokens(backbone: Backbone, images: Tensor, config: Stage2Config) -> tuple[Selection, Tensor]:
    """CARB of normalised images (B, 3, H, W): the kept tokens (Sec. 3.2), and their last features (B, T, D)."""
    attention = config.attention_block or config.cluster_block
    tokens = clustered = backbone.prepend_cls(backbone.embed(images))
    done = max(attention, config.cluster_block)
    for block in range(done):
        if block + 1 == attention:
            similarity = backbone.cls_similarity(tokens, block, config.cls_mean_heads)
        tokens = backbone.run_blocks(tokens, block, block + 1)
        if block + 1 == config.cluster_block:
            clustered = tokens
    selection = select(
        clustered[:, 1:].float(),
        similarity if config.attend == "most" else -similarity,
        config.attentive_ratio,
        config.num_clusters,
        config.density,
    )
    if config.sequence == "full":
        return selection, gather_tokens(backbone.run_blocks(tokens, done)[:, 1:], selection.kept)
    sequence = torch.cat([clustered[:, :1], gather_tokens(clustered[:, 1:], selection.kept)], dim=1)
    return selection, backbone.run_blocks(sequence, config.cluster_block)[:, 1:]


class ChosenTokens:
    """What CARB gave for faces that are not moved, kept as the backbone does not learn: float16, each face once."""

    def __init__(self, faces: int, tokens: int, kept: int, width: int, device: torch.device) -> None:
        self.known = torch.zeros(faces, dtype=torch.bool, device=device)
        self.features = torch.empty(faces, kept, width, dtype=torch.float16, device=device)
        self.kept = torch.empty(faces, kept, dtype=torch.int16, device=device)
        self.substitute = torch.empty(faces, tokens, dtype=torch.int16, device=device)

    @classmethod
    def if_it_fits(cls, faces: int, tokens: int, kept: int, width: int, device: torch.device) -> ChosenTokens | None:
        """Room for the tokens of so many faces, unless that is too much memory."""
        room = torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else CACHE_BYTES
        needed = 2 * faces * (kept * width + kept + tokens)
        return cls(faces, tokens, kept, width, device) if needed <= room else None

    def store(self, rows: Tensor, features: Tensor, selection: Selection) -> None:
        """Keep those of some faces."""
        self.features[rows], self.kept[rows] = features.half(), selection.kept.short()
        self.substitute[rows], self.known[rows] = selection.substitute.short(), True

    def read(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features, kept and substitute of some faces."""
        return self.features[rows].float(), self.kept[rows].long(), self.substitute[rows].long()


def share_in_centre(selection: Selection, grid: int) -> dict[str, float]:
    """The shares of the attentive tokens, and of the centers, in the central half of the map's rows and columns."""
    low, high = grid * (1 - CENTRE) / 2, grid * (1 + CENTRE) / 2
    shares = {}
    for name, chosen in (("attentive", selection.attentive), ("centers", selection.centers)):
        if chosen.shape[1]:
            places = torch.stack([chosen // grid, chosen % grid])
            shares[f"{name}_in_centre"] = float(((places >= low) & (places < high)).all(0).double().mean())
    return shares
