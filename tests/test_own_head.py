"""A head that is not part of the library: fitted, saved, loaded, cloned and evaluated to the contract of `Head`."""

import numpy as np
import pytest
import torch
from made_up_faces import coloured_faces
from sklearn.base import clone

import scemae
from scemae.detector.cascade import CascadeHead
from scemae.detector.head import HeadFit
from scemae.errors import IncompatibleWeightsError, OptionError, RunError
from scemae.evaluation.detection_scores import detection_scores, detection_tables
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.few_shot_detection import detect, detection_settings, plan_fits
from scemae.evaluation.setup import EvaluationSetup
from scemae.geometry import sample_at, soft_argmax


class TemplateHead:
    """Finds each landmark where the map is most like the mean descriptor of that landmark."""

    name = "template"
    max_folds = 10
    moved_copies = False

    def __init__(self, temperature=0.05):
        self.temperature = temperature

    def params(self):
        return {"temperature": self.temperature}

    def fit(self, data):
        originals = torch.from_numpy(data.originals)
        held_out = torch.full_like(data.landmarks[originals], torch.nan)
        blocks = np.unique(data.blocks)
        for block in blocks if len(blocks) > 1 else []:
            inside = data.blocks == block
            self.templates_ = self._mean_descriptors(data, ~inside)
            faces = data.maps[torch.from_numpy(inside & data.originals)]
            held_out[torch.from_numpy(inside[data.originals])] = self.predict(faces, data.grid)[0]
        self.templates_ = self._mean_descriptors(data, np.full(len(data.blocks), True))
        return HeadFit(held_out, mirrored=bool(data.mirrored.any()))

    def predict(self, maps, grid):
        likeness = torch.einsum("nchw,kc->nkhw", torch.nn.functional.normalize(maps, dim=1), self.templates_)
        heatmaps = (likeness / self.temperature).flatten(2).softmax(-1).view_as(likeness)
        return soft_argmax(heatmaps, grid).double(), heatmaps.flatten(2).amax(-1).double()

    def state(self):
        return {"templates": self.templates_}

    def load_state(self, state):
        self.templates_ = state["templates"]

    @staticmethod
    def _mean_descriptors(data, chosen):
        faces = torch.from_numpy(chosen)
        places = data.landmarks[faces]
        read = sample_at(data.maps[faces], data.grid, places)  # (n, K, C)
        read = read.masked_fill(places.isnan().any(-1, keepdim=True), torch.nan)
        return torch.nn.functional.normalize(read.nanmean(0), dim=-1)


@pytest.fixture(scope="module")
def fitted(model, faces, landmarks):
    return scemae.fit_regressor(model, faces, landmarks, head=TemplateHead(0.02), normalizer=(0, 1))


def test_it_is_fitted_and_finds_what_it_was_fitted_on(fitted, faces, landmarks):
    found = fitted.predict(faces)
    scales = np.array([face.crop.scale for face in faces.faces])
    errors = np.linalg.norm(found.xy - landmarks, axis=-1) / scales[:, None]  # input px
    assert np.median(errors) < 5
    assert 0 < fitted.held_out_error_ < 1
    assert fitted.head_.temperature == 0.02
    assert "template on" in repr(fitted)


def test_it_is_saved_and_loaded(tmp_path, model, fitted, faces, landmarks):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    loaded = scemae.LandmarkRegressor.load(path, model, head=TemplateHead)
    assert np.array_equal(loaded.predict(faces).xy, fitted.predict(faces).xy)
    assert np.array_equal(loaded.predict(faces).scores, fitted.predict(faces).scores)
    assert repr(loaded) == repr(fitted)
    assert (loaded.head.temperature, loaded.head_.temperature) == (0.02, 0.02)
    assert np.array_equal(loaded.fit(faces, landmarks).predict(faces).xy, fitted.predict(faces).xy)


def test_a_file_of_another_head_says_so(tmp_path, model, fitted, faces, landmarks):
    own, built_in = tmp_path / "own.safetensors", tmp_path / "built_in.safetensors"
    fitted.save(own)
    quick = CascadeHead(sigmas=(2.0,), samples=1)
    scemae.fit_regressor(model, faces, landmarks, head=quick, mirror="off").save(built_in)
    with pytest.raises(IncompatibleWeightsError, match=r"the head 'template', which is not one .*head=\.\.\."):
        scemae.LandmarkRegressor.load(own, model)
    with pytest.raises(IncompatibleWeightsError, match=r"the head 'cascade'; head= is the class of 'template'"):
        scemae.LandmarkRegressor.load(built_in, model, head=TemplateHead)
    with pytest.raises(OptionError, match="must be the class"):
        scemae.LandmarkRegressor.load(own, model, head=TemplateHead())


def test_scikit_learn_clones_it(model, fitted, faces, landmarks):
    copied = clone(fitted)
    assert copied.get_params() == fitted.get_params()
    assert not hasattr(copied, "head_")
    assert np.array_equal(copied.fit(faces, landmarks).predict(faces).xy, fitted.predict(faces).xy)


def test_it_is_evaluated(model, tmp_path):
    dataset = coloured_faces(tmp_path, 8)
    pool, test = dataset[:5], dataset[5:]
    setup = EvaluationSetup.of(model, align=False, expansion=1)

    def settings(fits):
        return detection_settings(setup, pool, test, fits)

    fits = plan_fits([TemplateHead(), "mean-shape"], [2], len(pool))
    run = EvaluationFolder.open(tmp_path / "run", settings(fits))
    detect(setup, pool, test, fits, run)
    scores, _ = detection_scores(run)
    assert scores["heads"]["template"]["2"]["inter_ocular_percent"].count == 5
    assert "| template on scemae-tiny" in detection_tables(setup, pool, test, fits, scores)[0].to_markdown()
    with pytest.raises(RunError, match="own_heads"):  # other params make another evaluation
        EvaluationFolder.open(tmp_path / "run", settings(plan_fits([TemplateHead(1.0), "mean-shape"], [2], len(pool))))
