"""Stage 1: a masked autoencoder (MAE) on unlabelled faces (paper Sec. 3.1).

scemae train stage1 --data PACK --out RUN --preset cpu
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scemae import draw
from scemae.errors import OptionError, RunError, warn_user
from scemae.geometry import sample_views
from scemae.model.backbone import Backbone, initialise_backbone
from scemae.model.config import ModelConfig
from scemae.training.batches import Batches, Squares, mean_and_std, normalise, random_crops
from scemae.training.masked_autoencoder import MaskedAutoencoder
from scemae.training.model_writer import CardSection, draw_view, write_model
from scemae.training.pack import Pack, sample_pack
from scemae.training.recipe import History
from scemae.training.run_config import CardFields, Precision, Stage1Config
from scemae.weights.model_folder import read_file, write_file
from scemae.weights.zoo import load_model, locate_model

DECODER = "decoder.safetensors"
FACES_SHOWN = 6
REPORTS = 20  # in a run


class Stage1:
    """The recipe that the engine trains: random crops, random masks, reconstruction."""

    compiles = True

    def __init__(self, config: Stage1Config, pack: Pack, card_fields: CardFields) -> None:
        pack.check_input_size(config.input_size)
        self.config, self.pack, self.card_fields = config.for_faces(len(pack)), pack, card_fields
        self.batches, self.squares = Batches(len(pack), config.batch_size, config.seed), Squares(pack.squares)
        torch.manual_seed(config.seed)
        backbone = Backbone(config.backbone, config.input_size, config.patch_size)
        initialise_backbone(backbone)
        self.module = MaskedAutoencoder(backbone, config)
        if not self.module.decoded:
            raise OptionError(
                f"mask_ratio {config.mask_ratio} and decoded_ratio {config.decoded_ratio} leave nothing to reconstruct."
            )
        self.source = None if config.continue_from is None else locate_model(config.continue_from).folder
        self.origin, self.images_before = "", 0
        if config.continue_from is not None:
            self._load_weights(config.continue_from)
        self.report_every = math.ceil(self.config.steps / REPORTS)

    def keep_on(self, device: torch.device, precision: Precision) -> bool:
        return self.squares.keep_on(device)

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Squares (b, S, S, 3) uint8, crops (b, 2, 3), orders of the patches (b, N), drawn where the pack is kept."""
        config, device = self.config, self.squares.device
        draws = self.batches.draws(step, device)
        crops = random_crops(
            draws,
            config.batch_size,
            size=self.pack.size,
            input_size=config.input_size,
            area=config.crop_area,
            ratio=config.crop_ratio,
            flip=config.flip,
        )
        orders = draws.bits(config.batch_size, self.module.backbone.grid**2)[part].argsort(dim=1)
        return self.squares[self.batches.rows_on(step, device)[part]], crops[part], orders

    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Normalised views (b, 3, H, W), and the orders."""
        squares, crops, orders = loaded
        views = sample_views(squares.permute(0, 3, 1, 2).float() / 255, crops, self.config.input_size)
        return normalise(views, self.config), orders

    def draw_report(self) -> Image.Image:
        """See `draw_reconstructions`."""
        return self.draw_reconstructions(self.pack)

    @torch.no_grad()
    def draw_reconstructions(self, pack: Pack) -> Image.Image:
        """Rows of the first faces' central views, what masking leaves of them, and their reconstruction."""
        count = min(FACES_SHOWN, len(pack))
        crops = torch.from_numpy(pack.central_affine[:2]).float().expand(count, 2, 3)
        orders = np.random.default_rng(0).random((count, self.module.backbone.grid**2)).argsort(axis=1)
        squares = torch.from_numpy(np.array(pack.squares[:count]))
        device = self.module.mask_token.device
        views, orders_there = self.prepare((squares.to(device), crops.to(device), torch.from_numpy(orders).to(device)))
        rows = (views, *self.module.reconstruct(views, orders_there))
        return draw.stack_rows([draw.row([self._draw_view(view) for view in row]) for row in rows])

    def measure(self) -> dict[str, float]:
        """Nothing besides the loss."""
        return {}

    def export(self, folder: Path, history: History) -> None:
        """Write the encoder as a model, and the decoder beside it."""
        config = self.config
        model = ModelConfig(
            **vars(self.card_fields),
            architecture=config.architecture,
            mean=config.mean,
            std=config.std,
            images_seen=self.images_before + history.step * config.batch_size,
            description="The encoder of a masked autoencoder (stage 1), without alignment and projector.",
            input_size=config.input_size,
            patch_size=config.patch_size,
        )
        backbone = {f"backbone.{name}": tensor for name, tensor in self.module.backbone.state_dict().items()}
        pictures = {"reconstructions": self.draw_reconstructions(sample_pack(config.input_size))}
        section = CardSection.of_training("stage 1", config, history, pictures)
        write_model(folder, model, backbone, section, self.source)
        decoder = {name: t for name, t in self.module.state_dict().items() if not name.startswith("backbone.")}
        write_file(folder / DECODER, decoder, {})

    def _load_weights(self, source: str) -> None:
        """Fill the encoder from a model, and the decoder if it is there and fits."""
        model = load_model(source, device="cpu")
        self.origin, self.images_before = model.id.sha256, model.config.images_seen
        for name in ("architecture", "input_size", "patch_size", "mean", "std"):
            theirs, ours = getattr(model.config, name), getattr(self.config, name)
            if theirs != ours:
                raise RunError(f"{source} has {name} {theirs}, this run {ours}; pass the same.")
        self.module.backbone.load_state_dict(model.backbone.state_dict())
        decoder, known = locate_model(source).folder / DECODER, self.module.state_dict()
        tensors = read_file(decoder)[0] if decoder.exists() else {}
        if {name: t.shape for name, t in tensors.items()} == {
            name: t.shape for name, t in known.items() if not name.startswith("backbone.")
        }:
            self.module.load_state_dict(tensors, strict=False)
        else:
            warn_user(
                f"{decoder} {'has other shapes than this run' if tensors else 'does not exist'}, so the decoder starts "
                "from random weights. While it learns, the encoder's features get worse: continue from the RUN/model "
                "of a stage 1 with the same decoder, or train long, at a low --learning-rate (docs/model-zoo.md)."
            )

    def _draw_view(self, view: Tensor) -> Image.Image:
        mean, std = mean_and_std(self.config)
        return draw_view(view.cpu() * std + mean)
