"""The paper's results (SCE-MAE, CVPR 2024), printed beside what was measured and marked "published".

Methods: DVE (Thewlis et al., ICCV 2019), CL (Cheng et al., ICCV 2021), LEAD (Karmali et al., WACV 2022), and SCE-MAE,
which is the paper's own, with its backbone. The number beside a method is the dimension of its descriptors.
"""

from __future__ import annotations

from scemae.evaluation.result_table import Spread

# Table 1: landmark matching on 1,000 pairs of MAFL.
# (method, dimensions) -> mean error on the same face, on different faces; px of a frame 70 px wide.
MATCHING = {
    ("DVE", 64): (0.92, 2.38),
    ("CL", 64): (0.92, 2.62),
    ("LEAD", 64): (0.51, 2.60),
    ("SCE-MAE DeiT-T", 64): (0.47, 1.99),
    ("CL", 128): (0.82, 2.19),
    ("SCE-MAE DeiT-S", 128): (0.31, 1.69),
    ("CL", 256): (0.71, 2.06),
    ("LEAD", 256): (0.48, 2.50),
    ("SCE-MAE DeiT-S", 256): (0.33, 1.72),
    ("SCE-MAE DeiT-B", 256): (0.27, 1.61),
}
# Table 2: landmark detection with all annotations.
# (method, dimensions) -> mean error on each set of DETECTION_SETS; % of the inter-ocular distance.
DETECTION_SETS = ("mafl", "aflw_m", "aflw_ro", "aflw_rc", "300w")  # AFLW_R with original, with corrected labels
DETECTION = {
    ("DVE", 64): (2.76, 6.96, 6.33, 5.58, 4.58),
    ("CL", 3840): (2.76, 6.17, 5.69, 5.06, 4.84),
    ("LEAD", 3840): (2.44, 6.05, 5.71, 5.11, 4.87),
    ("SCE-MAE DeiT-T", 256): (2.20, 5.89, 5.54, 4.86, 4.22),
    ("SCE-MAE DeiT-S", 512): (2.08, 5.33, 5.40, 4.69, 3.94),
    ("SCE-MAE DeiT-B", 1024): (2.07, 5.23, 5.33, 4.60, 3.95),
}
# Table 3: landmark detection with few annotations, on AFLW_M.
# (method, dimensions) -> (mean error, standard deviation) for each of FEW_SHOT_COUNTS; % of the inter-ocular distance.
FEW_SHOT_COUNTS = (1, 5, 10, 20, 50, 100)  # annotated faces
FEW_SHOT = {
    ("DVE", 64): ((14.23, 1.45), (12.04, 2.03), (12.25, 2.42), (11.46, 0.83), (12.76, 0.53), (11.88, 0.16)),
    ("CL", 64): ((24.87, 2.67), (15.15, 0.53), (13.52, 1.08), (11.77, 0.68), (11.57, 0.03), (10.06, 0.45)),
    ("LEAD", 64): ((21.80, 2.54), (13.34, 0.43), (11.50, 0.34), (10.13, 0.45), (9.29, 0.41), (9.11, 0.25)),
    ("SCE-MAE", 64): ((18.41, 1.21), (11.79, 0.44), (10.57, 0.24), (9.65, 0.14), (8.60, 0.17), (8.31, 0.06)),
    ("CL", 128): ((27.31, 1.39), (18.66, 4.59), (13.39, 0.30), (11.77, 0.85), (10.25, 0.22), (9.46, 0.05)),
    ("LEAD", 128): ((21.20, 1.67), (13.22, 1.43), (10.83, 0.65), (9.69, 0.41), (8.89, 0.20), (8.83, 0.33)),
    ("SCE-MAE", 128): ((20.14, 1.76), (11.99, 0.71), (10.40, 0.22), (9.25, 0.14), (8.49, 0.19), (7.96, 0.21)),
    ("CL", 256): ((28.00, 1.39), (15.85, 0.86), (12.98, 0.16), (11.18, 0.19), (9.56, 0.44), (9.30, 0.20)),
    ("LEAD", 256): ((21.39, 0.74), (12.38, 1.28), (11.01, 0.48), (10.06, 0.59), (8.51, 0.09), (8.56, 0.21)),
    ("SCE-MAE", 256): ((17.08, 1.35), (11.28, 0.54), (10.30, 0.09), (8.95, 0.08), (8.20, 0.20), (7.58, 0.09)),
}
# Table 4: ablation, landmark matching on MAFL.
# features -> mean error on the same face, on different faces; px of a frame 70 px wide.
ABLATION = {
    "CL hypercolumn": (0.69, 5.37),
    "LEAD hypercolumn": (2.35, 6.22),
    "raw MAE": (0.55, 3.51),
    "clustering, no LCR": (0.30, 4.04),
    "clustering and LCR": (0.27, 1.61),
}
# Fig. 5: method -> mean, standard deviation of the silhouette of t-SNE embeddings of landmark descriptors, 100 runs.
SILHOUETTE = {"CL": (0.602, 0.013), "LEAD (stage 1)": (0.613, 0.014), "SCE-MAE": (0.679, 0.013)}


def few_shot_error(row: tuple[tuple[float, float], ...], count: int) -> Spread | None:
    """The error with `count` annotated faces in a row of FEW_SHOT; None for a number that the paper does not have."""
    if count not in FEW_SHOT_COUNTS:
        return None
    return Spread(*row[FEW_SHOT_COUNTS.index(count)], count=0)  # the paper does not say of how many repetitions
