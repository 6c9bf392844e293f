"""The output of other detectors as boxes: recorded from the real ones on the sample photo of Eileen Collins."""

from types import SimpleNamespace as Thing

import numpy as np
import pytest
import torch

from scemae import boxes
from scemae.errors import BoxInputError


class Rectangle:  # dlib 20.0.1: HOG found one face, and one that is none
    def __init__(self, *edges):
        self.edges = edges

    def left(self):
        return self.edges[0]

    def top(self):
        return self.edges[1]

    def right(self):
        return self.edges[2]

    def bottom(self):
        return self.edges[3]


DLIB = [Rectangle(179, 83, 266, 170), Rectangle(131, 333, 218, 419)]
MTCNN = np.array([[179.86917114257812, 62.109928131103516, 267.81201171875, 173.1343994140625]], dtype=object)
SOLUTIONS = Thing(  # mediapipe 0.10.14, short range, image of 512 x 512 px
    location_data=Thing(
        relative_bounding_box=Thing(xmin=0.345307648, ymin=0.160671949, width=0.18721658, height=0.187217)
    )
)
IN_PIXELS = [[176.798, 82.264, 272.652, 178.119]]
TASKS = Thing(bounding_box=Thing(origin_x=10, origin_y=20, width=30, height=40))
YUNET = np.float32([[178, 66, 86, 108, 201, 100, 243, 103, 221, 126, 203, 140, 244, 141, 0.93]])  # as in its manual


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        pytest.param(boxes.from_xywh([[1, 2, 30, 40]]), [[1, 2, 31, 42]], id="xywh"),
        pytest.param(boxes.from_xywh((1, 2, 30, 40)), [[1, 2, 31, 42]], id="one"),
        pytest.param(boxes.from_xywh(torch.tensor([[1, 2, 30, 40]])), [[1, 2, 31, 42]], id="tensor"),
        pytest.param(boxes.from_normalised([(0.1, 0.2, 0.5, 1.02)], 200, 100), [[20, 20, 100, 102]], id="normalised"),
        pytest.param(boxes.from_yunet((1, YUNET)), [[178, 66, 264, 174]], id="YuNet, as returned"),
        pytest.param(boxes.from_yunet(YUNET), [[178, 66, 264, 174]], id="YuNet"),
        pytest.param(boxes.from_mtcnn(MTCNN), MTCNN.astype(float), id="MTCNN"),
        pytest.param(boxes.from_mtcnn((MTCNN, np.array([0.99]))), MTCNN.astype(float), id="MTCNN, as returned"),
        pytest.param(boxes.from_mediapipe(Thing(detections=[SOLUTIONS]), 512, 512), IN_PIXELS,
                     id="MediaPipe, as returned"),
        pytest.param(boxes.from_mediapipe([SOLUTIONS], 512, 512), IN_PIXELS, id="MediaPipe"),
        pytest.param(boxes.from_mediapipe(Thing(detections=[TASKS])), [[10, 20, 40, 60]], id="MediaPipe tasks"),
        pytest.param(boxes.from_dlib(DLIB), [[179, 83, 267, 171], [131, 333, 219, 420]], id="dlib"),
        pytest.param(boxes.from_dlib(DLIB[0]), [[179, 83, 267, 171]], id="dlib, one"),
        pytest.param(boxes.from_dlib([Thing(rect=DLIB[0])]), [[179, 83, 267, 171]], id="dlib, CNN"),
        pytest.param(boxes.from_insightface([{"bbox": np.float32([1, 2, 3, 4]), "det_score": 0.9}]), [[1, 2, 3, 4]],
                     id="InsightFace"),
        pytest.param(boxes.from_insightface([Thing(bbox=[1, 2, 3, 4, 0.9])]), [[1, 2, 3, 4]], id="uniface"),
    ],
)  # fmt: skip
def test_boxes_of_other_detectors(found, wanted):
    assert found.dtype == np.float64
    assert np.allclose(found, np.array(wanted, dtype=float), atol=1e-3)


@pytest.mark.parametrize(
    "found",
    [
        boxes.from_xywh(None),
        boxes.from_xywh([]),
        boxes.from_xywh(()),  # as cv2.CascadeClassifier has it
        boxes.from_normalised(np.empty((0, 4)), 10, 10),
        boxes.from_yunet((1, None)),
        boxes.from_yunet(None),
        boxes.from_mtcnn((None, np.array([None]))),
        boxes.from_mtcnn(None),
        boxes.from_mediapipe(Thing(detections=None)),
        boxes.from_mediapipe([]),
        boxes.from_dlib([]),
        boxes.from_insightface([]),
    ],
)
def test_no_face_is_no_box(found):
    assert (found.shape, found.dtype) == ((0, 4), np.float64)


@pytest.mark.parametrize(
    ("read", "given", "said"),
    [
        (boxes.from_xywh, [[1, 2, 0, 40]], r"Box 0 would be \(1, 2, 1, 42\) as \(x0, y0, x1, y1\), which is none"),
        (boxes.from_xywh, [[1, 2, np.nan, 40]], "which is none; wanted"),
        (boxes.from_xywh, [[1, 2, 3]], r"Boxes of shape \(1, 3\) came; wanted \(x, y, width, height\): \(n, 4\)"),
        (boxes.from_xywh, "face", "'face' of type str came; wanted"),
        (boxes.from_xywh, torch.ones(1, 4, requires_grad=True), "of type Tensor came"),
        (lambda given: boxes.from_normalised(given, 100, 100), [[10, 20, 50, 60]], r"is \(10, 20, 50, 60\), in pixels"),
        (lambda given: boxes.from_normalised(given, 0, 100), [[0, 0, 1, 1]], "The image is 0 x 100; wanted its width"),
        (boxes.from_yunet, [[1, 2, 3, 4]], r"Boxes of shape \(1, 4\) came; wanted rows of 15 numbers"),
        (
            boxes.from_mtcnn,
            [{"box": [1, 2, 3, 4], "confidence": 0.9}],
            "'box'.* of type list came; .* of facenet-pytorch",
        ),
        (boxes.from_mtcnn, (np.ones((2, 1, 4)), np.ones((2, 1))), "of one image"),
        (boxes.from_mediapipe, [SOLUTIONS], "pass its width and height in px as well"),
        (boxes.from_mediapipe, [DLIB[0]], "of type Rectangle came"),
        (boxes.from_dlib, [(1, 2, 3, 4)], r"\(1, 2, 3, 4\) of type tuple came; wanted rectangles of dlib"),
        (boxes.from_dlib, 5, "5 of type int came; wanted rectangles"),
        (boxes.from_insightface, [{"box": [1, 2, 3, 4]}], "of type dict came; wanted faces with a bbox"),
        (boxes.from_insightface, {"bbox": [1, 2, 3, 4]}, "of type dict came"),
    ],
)
def test_what_is_no_output_of_that_detector_is_refused(read, given, said):
    with pytest.raises(BoxInputError, match=said):
        read(given)
