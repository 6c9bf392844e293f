"""In scikit-learn's cross-validation boxes and groups reach `fit` and `score`, or it says so (faults A3)."""

import functools
import sys

import numpy as np
import pytest
import sklearn
from made_up_faces import frames_of_people
from sklearn.base import clone
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score

import scemae
from scemae.detector.cascade import CascadeHead
from scemae.errors import BoxInputError, MissingExtraError


@pytest.fixture(scope="module")
def photos():
    """Six photos of three people, each with the face in another corner: their landmarks, boxes and people."""
    pictures, landmarks, person = frames_of_people(people=3, frames=2)
    rng, large, boxes = np.random.default_rng(1), [], []
    for picture, xy in zip(pictures, landmarks, strict=True):
        canvas = np.full((300, 300, 3), 90, dtype=np.uint8)
        left, top = rng.integers(0, 164, 2)
        canvas[top : top + 136, left : left + 136] = picture
        large.append(canvas)
        xy += [left, top]
        boxes.append((left + 20, top + 20, left + 116, top + 116))
    return large, landmarks, boxes, person


@pytest.fixture
def regressor(two_block_model):
    return new_regressor(two_block_model)


def new_regressor(model):
    head = CascadeHead(sigmas=(8.0, 3.0), samples=2)
    return scemae.LandmarkRegressor(
        model, head=head, mirror="off", use="backbone", align=False, expansion=1, normalizer=(0, 1)
    )


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


@pytest.fixture(scope="module")
def by_hand(photos, two_block_model):
    """The scores of three people held out in turn, by a loop that has the boxes."""
    images, landmarks, boxes, person = photos

    @functools.cache
    def loop(groups):
        scores = []
        for train, test in GroupKFold(3).split(images, landmarks, person):
            fold = new_regressor(two_block_model).fit(
                [images[i] for i in train],
                landmarks[train],
                boxes=[boxes[i] for i in train],
                groups=person[train] if groups else None,
            )
            found = fold.score([images[i] for i in test], landmarks[test], boxes=[boxes[i] for i in test])
            scores.append(found)
        return scores

    return loop


@pytest.mark.slow
@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("groups", [True, False])
def test_cross_validation_with_boxes_is_the_loop_by_hand(regressor, photos, by_hand, groups):
    images, landmarks, boxes, person = photos
    regressor.set_fit_request(boxes=True, groups=groups).set_score_request(boxes=True)
    params = {"boxes": boxes, "groups": person}
    scores = cross_val_score(regressor, images, landmarks, cv=GroupKFold(3), params=params)
    assert scores == pytest.approx(by_hand(groups), abs=1e-6)
    search = GridSearchCV(regressor, {"normalizer": [(0, 1), (1, 0)]}, cv=GroupKFold(3), refit=False)
    search.fit(images, landmarks, **params)
    assert search.cv_results_["mean_test_score"] == pytest.approx([np.mean(scores)] * 2, abs=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("routing")
def test_what_was_not_requested_is_refused(regressor, photos):
    images, landmarks, boxes, _ = photos
    with pytest.raises(UnsetMetadataPassedError, match="boxes"):
        cross_val_score(regressor, images, landmarks, cv=3, params={"boxes": boxes})
    with pytest.raises(UnsetMetadataPassedError, match=r"\[boxes\].*LandmarkRegressor.*score"):
        cross_val_score(regressor.set_fit_request(boxes=True), images, landmarks, cv=3, params={"boxes": boxes})
    with pytest.raises(TypeError, match="groups"):
        regressor.set_score_request(groups=True)
    by_name = clone(regressor.set_fit_request(boxes="squares", groups=False))
    assert by_name.get_metadata_routing().fit.requests == {"boxes": "squares", "groups": False}
    assert by_name.get_metadata_routing().predict.requests == {"boxes": None}
    assert by_name.set_predict_request(boxes=True).get_metadata_routing().predict.requests == {"boxes": True}
    assert regressor.get_metadata_routing().predict.requests == {"boxes": None}


@pytest.mark.slow
def test_without_routing_a_score_without_boxes_is_refused(regressor, photos):
    """Faults A3: it was a number, that of the middles of the photos."""
    images, landmarks, boxes, _ = photos
    with pytest.raises(BoxInputError, match=r"score: .*\[None\] \* n.*extract the features first.*set_score_request"):
        cross_val_score(regressor, images, landmarks, cv=3, params={"boxes": boxes}, error_score="raise")
    with pytest.warns(UserWarning, match="extract the features first"):
        assert np.isnan(cross_val_score(regressor, images, landmarks, cv=3, params={"boxes": boxes})).all()
    search = GridSearchCV(regressor, {"normalizer": [(0, 1), (1, 0)]}, cv=3)
    with (
        pytest.warns(UserWarning, match="extract the features first"),
        pytest.warns(UserWarning, match="One or more of the test scores are non-finite"),
    ):
        search.fit(images, landmarks, boxes=boxes)  # scikit-learn's own: it fits the first of what it could not score
    assert np.isnan(search.best_score_)
    assert search.best_params_ == {"normalizer": (0, 1)}
    with pytest.raises(BoxInputError, match="extract the features first"):
        clone(search).set_params(error_score="raise").fit(images, landmarks, boxes=boxes)
    with pytest.raises(RuntimeError, match="enable_metadata_routing=True"):
        regressor.set_fit_request(boxes=True)


@pytest.mark.slow
def test_features_first_is_the_loop_by_hand(regressor, two_block_model, photos, by_hand):
    images, landmarks, boxes, person = photos
    features = scemae.extract_features(two_block_model, images, boxes=boxes, align=False, expansion=1)
    scores = cross_val_score(regressor, features, landmarks, groups=person, cv=GroupKFold(3))
    assert scores == pytest.approx(by_hand(False), abs=1e-6)
    grouped = cross_val_score(
        regressor, features, landmarks, groups=person, cv=GroupKFold(3), params={"groups": person}
    )
    assert grouped == pytest.approx(by_hand(True), abs=1e-6)
    search = GridSearchCV(regressor, {"use": ["backbone", "projected"]}, cv=KFold(3)).fit(features, landmarks)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])


@pytest.mark.slow
def test_boxes_are_said_or_left_out_on_purpose(regressor, two_block_model, photos):
    images, landmarks, boxes, _ = photos
    regressor.fit(images, landmarks, boxes=boxes)
    with pytest.warns(UserWarning, match="fitted with boxes=") as warned:
        found = regressor.predict(images)
    assert warned[0].filename == __file__
    assert np.array_equal(regressor.predict(images, boxes=[None] * 6).xy, found.xy)
    assert regressor.score(images, landmarks, boxes=[None] * 6) < regressor.score(images, landmarks, boxes=boxes)
    features = scemae.extract_features(two_block_model, images, boxes=boxes, align=False, expansion=1)
    for use in (regressor.fit, regressor.score):
        with pytest.raises(BoxInputError, match=r"images are FaceFeatures.*leave out boxes="):
            use(features, landmarks, boxes=boxes)
    assert regressor.score(features, landmarks) == pytest.approx(regressor.score(images, landmarks, boxes=boxes))
    regressor.fit(features, landmarks).predict(images)  # nothing is known of boxes here


def test_without_scikit_learn_requests_say_what_is_missing(regressor, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.utils._metadata_requests", None)
    with pytest.raises(MissingExtraError, match="scikit-learn"):
        regressor.set_fit_request(boxes=True)
