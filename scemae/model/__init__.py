"""The model: backbone, projector, aligner, cover-and-stride, and `SceMae`, which holds them."""
