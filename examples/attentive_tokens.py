"""Where the tokens lie that CARB chooses (paper Sec. 3.2): a picture of two blocks, and with MTFL's labels a table.

python examples/attentive_tokens.py tokens.png [--mtfl MTFL]: the sample faces, the attentive tokens of block 3 and of
the last block tinted, the cluster centers framed; of 500 faces of net_7876 in the protocol's crop, which share of the
most and of the least attended tokens of each block lies within a cell of a landmark, and on the outermost cells.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

import scemae
from scemae import draw
from scemae.datasets import FaceDataset, read_dataset
from scemae.features import FaceFeatures
from scemae.geometry import sample_view
from scemae.model.sce_mae import SceMae
from scemae.samples import sample_faces
from scemae.training.chosen_tokens import choose_tokens
from scemae.training.model_writer import draw_view
from scemae.training.stage2_config import stage2_preset

FACES = 500


def main() -> None:
    """Write the picture and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="PICTURE", help="Picture to write.")
    parser.add_argument("--mtfl", type=Path, help="Folder of MTFL, to print the table.")
    args = parser.parse_args()
    model = scemae.load_model()
    samples = sample_faces()
    features = scemae.extract_features(model, [face.path for face in samples], boxes=[face.box for face in samples])
    draw_blocks(model, cut_views(features)).save(args.out)
    print(f"written to {args.out}")
    if args.mtfl is not None:
        print(*print_table(model, read_dataset("mtfl", args.mtfl, "net_7876")[:FACES]), sep="\n")


def cut_views(features: FaceFeatures) -> Tensor:
    """What the model saw of the faces, without margin: (B, 3, S, S), 0..1."""
    return torch.stack([sample_view(face.patch, face.crop) for face in features.faces])


@torch.no_grad()
def draw_blocks(model: SceMae, views: Tensor) -> Image.Image:
    """The views with the tokens that the attention of block 3, and of the last block, would choose."""
    panels, captions = [], []
    for block in (3, model.config.backbone.depth):
        config = replace(stage2_preset("paper", model.config.architecture), attention_block=block)
        selection, _ = choose_tokens(model.backbone, model.normalise(views), config)
        for view, *chosen in zip(views, selection.attentive.numpy(), selection.centers.numpy(), strict=True):
            panels.append(draw.cells(draw_view(view), model.backbone.grid, *chosen))
            captions.append(f"attention of block {block}")
    return draw.row(panels, captions)


@torch.no_grad()
def print_table(model: SceMae, faces: FaceDataset) -> list[str]:
    """Lines of a Markdown table: % of the attentive tokens near a landmark, and on the outermost cells, by block."""
    features = scemae.extract_features(model, [face.image() for face in faces.samples], boxes=faces.boxes, align=False)
    grid = model.grid(1)
    count = model.backbone.grid
    centres = grid.centres(count)
    cells = torch.cartesian_prod(centres, centres).flip(1)  # (x, y) of the tokens, row by row
    landmarks = torch.from_numpy(features.to_input(faces.landmarks))
    near = ((cells[:, None] - landmarks[:, None]).abs() <= grid.step).all(-1).any(-1)  # (B, N)
    ring = ((cells < centres[1]) | (cells > centres[-2])).any(-1).expand_as(near)
    number = int(stage2_preset("paper", model.config.architecture).attentive_ratio * count**2)

    def shares(chosen: Tensor) -> str:
        return " | ".join(f"{100 * float(kind.gather(1, chosen).double().mean()):.0f}" for kind in (near, ring))

    lines = [
        "| block | most attended: near, % | ring, % | least attended: near, % | ring, % |",
        "|---|---|---|---|---|",
    ]
    tokens = model.backbone.prepend_cls(model.backbone.embed(model.normalise(cut_views(features))))
    for block in range(model.config.backbone.depth):
        order = model.backbone.cls_similarity(tokens, block).argsort(dim=1, descending=True)
        tokens = model.backbone.run_blocks(tokens, block, block + 1)
        lines.append(f"| {block + 1} | {shares(order[:, :number])} | {shares(order[:, -number:])} |")
    every = shares(torch.arange(count**2).expand_as(near))
    return [*lines, f"| chance | {every} | {every} |"]


if __name__ == "__main__":
    main()
