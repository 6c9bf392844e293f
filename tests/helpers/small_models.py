"""A small random model with aligner and projector, of any input and patch size; use it with `tiny_backbone`."""

import torch

from scemae.model.config import AlignerConfig, FinderConfig, ModelConfig, TokenAlignerConfig
from scemae.model.sce_mae import SceMae
from scemae.weights.model_folder import save_model
from scemae.weights.zoo import load_model

POINTS = ((-0.4, -0.4), (0.4, -0.4), (0.0, 0.8))
ALIGNER = AlignerConfig(
    points=POINTS,
    view_size=32,
    widths=(4, 8),
    squeezed=2,
    hidden=8,
    steps=2,
    similarity_steps=1,
    settled=0.01,
    threshold=-2.0,
    slope=1.5,
)
TOKEN_ALIGNER = TokenAlignerConfig(
    points=POINTS,
    scale=1.0,
    steps=(0, 0),
    similarity_steps=1,
    projection_dim=3,
    residual=0.1,
)
FINDER = FinderConfig(widths=(4, 4, 8), sides=(16.0, 40.0), threshold=0.0)


def small_config(input_size=64, patch_size=16, **fields):
    return ModelConfig(
        name="small",
        architecture="test-tiny",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        images_seen=0,
        training_data="none",
        description="random weights",
        projector_dim=4,
        input_size=input_size,
        patch_size=patch_size,
        **fields,
    )


def load_small_model(folder, input_size=64, patch_size=16, aligner=ALIGNER, **fields):
    """Save such a model and load it. Its aligner is sure of every face near its place: it moves crops only a little."""
    config = small_config(input_size, patch_size, aligner=aligner, **fields)
    model = SceMae(config)
    if isinstance(aligner, TokenAlignerConfig):
        [stage] = model.aligner.stages
        for buffer in (stage.token_projection, stage.weight):
            buffer.normal_(std=0.01)
        stage.bias.copy_(torch.tensor(aligner.points).flatten())
    elif aligner is not None:
        last = model.aligner.layers[-1]
        with torch.no_grad():
            last.weight.normal_(std=0.01)
            last.bias.copy_(torch.tensor([*torch.tensor(aligner.points).flatten(), aligner.threshold - 1]))
    save_model(folder, model.state_dict(), config, "")
    return load_model(f"local-dir:{folder}")
