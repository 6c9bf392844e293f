"""Find landmarks without torch and scemae, only numpy, pillow and onnxruntime, by what `scemae export` has written:
python examples/onnx_landmarks.py DETECTOR.onnx PHOTO X0 Y0 X1 Y1"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

PATCH_OVER_BOX = 3  # side of the patch over that of the box, as the alignment may move the crop


def cut_patch(photo, box, box_side):
    """The part of the photo around the box, reduced if the box is larger than `box_side` px.

    Returns the pixels, and step and origin of photo = origin + step * patch, with both counted in pixel edges.
    """
    step = max((box[2:] - box[:2]).max() / box_side, 1.0)
    origin = (box[:2] + box[2:]) / 2 - step * PATCH_OVER_BOX * box_side / 2
    if step == 1:
        origin = origin.round()  # the photo's own pixels
    first = np.maximum(np.ceil(-origin / step), 0)
    last = np.minimum(np.floor((np.array(photo.size) - origin) / step), PATCH_OVER_BOX * box_side)
    low, high = np.maximum(origin + first * step, 0), np.minimum(origin + last * step, photo.size)
    patch = photo.resize((last - first).astype(int), Image.Resampling.BILINEAR, box=(*low, *high))
    return np.asarray(patch), step, low


model, path, *corners = sys.argv[1:]
photo = ImageOps.exif_transpose(Image.open(path, formats=["JPEG", "PNG", "WEBP", "TIFF", "BMP"]))
if photo.mode[0] in "IF" or photo.has_transparency_data:
    sys.exit(f"{path} has pixels of mode {photo.mode}: convert it to 8 bits a channel, without transparency, first.")
photo = photo.convert("RGB")
box = np.array(corners, dtype=float)
session = onnxruntime.InferenceSession(model)
about = json.loads(session.get_modelmeta().custom_metadata_map["scemae"])

patch, step, origin = cut_patch(photo, box, about["box_side"])
patches = patch.transpose(2, 0, 1)[None]  # (1, 3, H, W), uint8
boxes = ((box - [*origin, *origin]) / step)[None].astype(np.float32)  # pixel edges: no 0.5
landmarks, scores, face_scores, radii = session.run(None, {"patches": patches, "boxes": boxes})

if face_scores[0] < 0.5:  # nan, of a model that cannot tell, is not
    print(f"no face in the box (score {face_scores[0]:.2f}): the landmarks mean nothing")
places = origin + step * (landmarks[0] + 0.5) - 0.5  # points are counted from pixel centres
for name, (x, y), score in zip(about["landmarks"] or range(len(places)), places, scores[0], strict=True):
    print(f"{name} {x:.2f} {y:.2f} {score:.3f}")
