"""A landmark detector from one annotated face: python examples/few_shot_detector.py [OUT.png [OUT.safetensors]]"""

import sys

import numpy as np

import scemae
from scemae.samples import sample_faces

annotated, new = sample_faces()
model = scemae.load_model()

# For more faces pass lists of images and landmarks; regressor.held_out_error_ then estimates the error.
regressor = scemae.fit_regressor(model, annotated.path, annotated.landmarks, boxes=[annotated.box])
print(regressor)

found = regressor.predict(new.path, boxes=[new.box])
annotated_xy = np.array([new.landmarks[name] for name in found.labels()])
errors = np.linalg.norm(found.xy[0] - annotated_xy, axis=1)
for name, error, confidence in zip(found.labels(), errors, found.scores[0], strict=True):
    print(f"{name:12} {error:4.1f} px from the annotation, confidence {confidence:.2f}")

out = sys.argv[1] if len(sys.argv) > 1 else "few_shot_detector.png"
found.draw().save(out)
print(out)
if len(sys.argv) > 2:
    regressor.save(sys.argv[2])
    again = scemae.LandmarkRegressor.load(sys.argv[2], model).predict(new.path, boxes=[new.box])
    print(f"{sys.argv[2]}: loaded again, it finds the same landmarks: {np.array_equal(again.xy, found.xy)}")
