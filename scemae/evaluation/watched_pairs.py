"""Labelled pairs of faces that a training of stage 2 is watched on, as in the matching protocol (paper Sec. 4.1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scemae import match_landmarks
from scemae.datasets import FaceDataset
from scemae.errors import OptionError
from scemae.evaluation.pair_matching import CANONICAL, CHUNK, KINDS, clip_to_view
from scemae.evaluation.setup import EvaluationSetup
from scemae.evaluation.warped_pairs import BOX, draw_pairs
from scemae.features import FaceFeatures
from scemae.metrics import pixel_errors
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae


class WatchedPairs:
    """Backbone maps of the first pairs of a dataset, which any projector can be measured on.

    Args:
        model: a model; only its aligner and backbone are used.
        dataset: labelled faces; raises OptionError for less than two.
        pairs: how many pairs, at most half the number of faces.
        align: refine the crops first.
    """

    def __init__(self, model: SceMae, dataset: FaceDataset, pairs: int, align: bool) -> None:
        if len(dataset) < 2:
            raise OptionError(f"{dataset} has {len(dataset)} faces; wanted at least two to watch a training on.")
        setup = EvaluationSetup.of(model, align=align and model.aligner is not None, use="backbone")
        warped = draw_pairs(dataset, min(pairs, len(dataset) // 2), seed=0)
        numbers = range(len(warped))
        sources, others = [2 * i for i in numbers], [2 * i + 1 for i in numbers]
        kinds = ((sources, 2), (sources, 1), (others, 1))
        self.sources, *targets = (
            FaceFeatures.concatenate(
                [
                    setup.extract(warped.warp_frames(faces[i : i + CHUNK], times), [BOX] * len(faces[i : i + CHUNK]))
                    for i in range(0, len(faces), CHUNK)
                ]
            )
            for faces, times in kinds
        )
        self.targets = FaceFeatures.concatenate(targets)  # those of `KINDS`, one after the other
        self.origins = [clip_to_view(self.sources[i], warped.landmarks[2, 2 * i]) for i in numbers]
        self.truths = warped.landmarks[1, [sources, others]]  # (2, pairs, K, 2)

    def measure(self, projector: Projector) -> dict[str, float]:
        """`watched_same_error` and `watched_different_error`: mean error by cosine alone, px of the 70 px frame."""
        sources, targets = (replace(faces, project=projector.project) for faces in (self.sources, self.targets))
        count = len(sources)
        found = [
            match_landmarks(sources[i], origin, targets[[i, count + i]], use="projected", prior=0).xy
            for i, origin in enumerate(self.origins)
        ]
        errors = CANONICAL * pixel_errors(np.stack(found, axis=1), self.truths)
        return {f"watched_{kind}_error": float(of_kind.mean()) for kind, of_kind in zip(KINDS, errors, strict=True)}
