"""A small random model with aligner and projector, of any input and patch size; use it with `tiny_backbone`."""

import torch

from scemae.model.config import AlignerConfig, ModelConfig
from scemae.model.sce_mae import SceMae
from scemae.weights.model_folder import save_model
from scemae.weights.zoo import load_model

ALIGNER = AlignerConfig(
    points=((-0.4, -0.4), (0.4, -0.4), (0.0, 0.8)),
    scale=1.0,
    steps=(0, 0),
    similarity_steps=1,
    projection_dim=3,
    residual=0.1,
)


def load_small_model(folder, input_size, patch_size):
    """Save such a model and load it. Its aligner sees every face near its place, so it moves crops only a little."""
    config = ModelConfig(
        name="small",
        architecture="test-tiny",
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        images_seen=0,
        training_data="none",
        description="random weights",
        projector_dim=4,
        aligner=ALIGNER,
        input_size=input_size,
        patch_size=patch_size,
    )
    model = SceMae(config)
    [stage] = model.aligner.stages
    for buffer in (stage.token_projection, stage.weight):
        buffer.normal_(std=0.01)
    stage.bias.copy_(torch.tensor(ALIGNER.points).flatten())
    save_model(folder, model.state_dict(), config, "")
    return load_model(f"local-dir:{folder}")
