"""The coordinate conventions: every conversion between image, input and cell coordinates happens here.

A point is (x, y), float, and (0, 0) is the centre of the top-left pixel. There are three frames: *image* pixels (what
the user passed, upright), *input* pixels (the square that the model sees) and *cells* (of a feature map).
docs/coordinates.md explains them.
"""

from scemae.geometry.affine import (
    IDENTITY,
    Array,
    apply_affine,
    apply_affines,
    compose,
    compose_affines,
    determinants,
    fit_affine,
    fit_similarity,
    invert,
    invert_affines,
    random_affines,
    similarity,
)
from scemae.geometry.crop import (
    Alignment,
    Box,
    Crop,
    central_box,
    central_part,
    crops_from_boxes,
    holding_box,
    pad_crops,
    resample_crops,
)
from scemae.geometry.mean_frame import FaceShapes, MeanFrame, symmetrise
from scemae.geometry.normalised_coordinates import (
    half_side_to_pixel_affines,
    half_sides_to_pixels,
    pixels_to_half_sides,
    pixels_to_unit,
    unit_to_pixels,
)
from scemae.geometry.sampling import (
    CellGrid,
    Patch,
    build_pyramid,
    sample_at,
    sample_crops,
    sample_pixels,
    sample_pyramid,
    sample_smoothly,
    sample_view,
    sample_views,
    soft_argmax,
)

__all__ = [
    "IDENTITY",
    "Alignment",
    "Array",
    "Box",
    "CellGrid",
    "Crop",
    "FaceShapes",
    "MeanFrame",
    "Patch",
    "apply_affine",
    "apply_affines",
    "build_pyramid",
    "central_box",
    "central_part",
    "compose",
    "compose_affines",
    "crops_from_boxes",
    "determinants",
    "fit_affine",
    "fit_similarity",
    "half_side_to_pixel_affines",
    "half_sides_to_pixels",
    "holding_box",
    "invert",
    "invert_affines",
    "pad_crops",
    "pixels_to_half_sides",
    "pixels_to_unit",
    "random_affines",
    "resample_crops",
    "sample_at",
    "sample_crops",
    "sample_pixels",
    "sample_pyramid",
    "sample_smoothly",
    "sample_view",
    "sample_views",
    "similarity",
    "soft_argmax",
    "symmetrise",
    "unit_to_pixels",
]
