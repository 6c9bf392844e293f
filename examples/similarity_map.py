"""Draw where else a face looks like one point: python examples/similarity_map.py [LANDMARK [OUT.png]]"""

import sys

import scemae
from scemae.samples import sample_faces

landmark = sys.argv[1] if len(sys.argv) > 1 else "left_mouth"
out = sys.argv[2] if len(sys.argv) > 2 else "similarity_map.png"

reference, target = sample_faces()
model = scemae.load_model()
faces = scemae.extract_features(model, [reference.path, target.path], boxes=[reference.box, target.box], expansion=4)
matches = scemae.match_landmarks(faces[0], reference.landmarks, faces, keep_similarity=True)
matches.draw_similarity(landmark).save(out)
print(out)
