"""Points of one face found on another: python examples/match_two_faces.py [OUT.png]"""

import sys

import scemae
from scemae.samples import sample_faces

reference, target = sample_faces()
model = scemae.load_model()  # bundled with the package: needs no network
faces = scemae.extract_features(model, [reference.path, target.path], boxes=[reference.box, target.box])
matches = scemae.match_landmarks(faces[0], reference.landmarks, faces[1])

for name, (x, y), score in zip(matches.labels(), matches.xy[0], matches.scores[0], strict=True):
    true_x, true_y = target.landmarks[name]
    print(f"{name:12} found at {x:6.1f} {y:6.1f}, clicked at {true_x:6.1f} {true_y:6.1f}, similarity {score:.2f}")

out = sys.argv[1] if len(sys.argv) > 1 else "match_two_faces.png"
matches.draw().save(out)
print(out)
