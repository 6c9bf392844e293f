"""Find points of one face on another: python examples/match_two_faces.py [OUT.png]"""

import sys

import numpy as np

import scemae
from scemae.samples import sample_faces

reference, target = sample_faces()
model = scemae.load_model()  # bundled with the package: needs no network
faces = scemae.extract_features(model, [reference.path, target.path], boxes=[reference.box, target.box])
matches = scemae.match_landmarks(faces[0], reference.landmarks, faces[1], use="both", subpixel=True)

between_eyes = np.linalg.norm(np.subtract(target.landmarks["left_eye"], target.landmarks["right_eye"]))
for name, xy, score in zip(matches.labels(), matches.xy[0], matches.scores[0], strict=True):
    error = np.linalg.norm(xy - target.landmarks[name]) / between_eyes
    print(f"{name:12} ({xy[0]:.1f}, {xy[1]:.1f}), error {error:.1%} of the inter-ocular distance, score {score:.2f}")

out = sys.argv[1] if len(sys.argv) > 1 else "match_two_faces.png"
matches.draw().save(out)
print(out)
