"""The numbers of the paper, typed again from its text: its results as a whole, and what its training settings say.

Results stand here column by column, where `paper_results` has a line for each method.
"""

import re

import pytest

from scemae.evaluation import paper_results
from scemae.model.config import BACKBONES
from scemae.training.run_config import STAGE1_PRESETS
from scemae.training.stage2_config import stage2_preset


def columns(text):
    """The columns of a table that has a line for each of them: {name: cells}."""
    lines = [re.split(r"\s{2,}", line.strip()) for line in text.strip().splitlines()]
    assert len({len(line) for line in lines}) == 1
    return {name: cells for name, *cells in lines}


def named(table, dimensions="Feat. Dim."):
    """What `paper_results` names a column's cells by: "Ours" of the paper is SCE-MAE."""
    names = [name.replace("Ours", "SCE-MAE") for name in table["Method"]]
    return list(zip(names, map(int, table[dimensions]), strict=True))


def numbers(table, names):
    """The cells of some columns, method by method."""
    return list(zip(*([float(cell) for cell in table[name]] for name in names), strict=True))


TABLE_1 = columns("""
Method      DVE   CL    LEAD  Ours DeiT-T  CL    Ours DeiT-S  CL    LEAD  Ours DeiT-S  Ours DeiT-B
Feat. Dim.  64    64    64    64           128   128          256   256   256          256
Same        0.92  0.92  0.51  0.47         0.82  0.31         0.71  0.48  0.33         0.27
Diff.       2.38  2.62  2.60  1.99         2.19  1.69         2.06  2.50  1.72         1.61
""")
TABLE_2 = columns("""
Method        DVE   CL    LEAD  Ours DeiT-T  Ours DeiT-S  Ours DeiT-B
Feature Dim.  64    3840  3840  256          512          1024
MAFL          2.76  2.76  2.44  2.20         2.08         2.07
AFLW_M        6.96  6.17  6.05  5.89         5.33         5.23
AFLW_RO       6.33  5.69  5.71  5.54         5.40         5.33
AFLW_RC       5.58  5.06  5.11  4.86         4.69         4.60
300W          4.58  4.84  4.87  4.22         3.94         3.95
""")
TABLE_3 = columns("""
Method      DVE    CL     LEAD   Ours   CL     LEAD   Ours   CL     LEAD   Ours
Feat. Dim.  64     64     64     64     128    128    128    256    256    256
1           14.23  24.87  21.80  18.41  27.31  21.20  20.14  28.00  21.39  17.08
5           12.04  15.15  13.34  11.79  18.66  13.22  11.99  15.85  12.38  11.28
10          12.25  13.52  11.50  10.57  13.39  10.83  10.40  12.98  11.01  10.30
20          11.46  11.77  10.13  9.65   11.77  9.69   9.25   11.18  10.06  8.95
50          12.76  11.57  9.29   8.60   10.25  8.89   8.49   9.56   8.51   8.20
100         11.88  10.06  9.11   8.31   9.46   8.83   7.96   9.30   8.56   7.58
""")
TABLE_3_DEVIATIONS = columns("""
1    1.45  2.67  2.54  1.21  1.39  1.67  1.76  1.39  0.74  1.35
5    2.03  0.53  0.43  0.44  4.59  1.43  0.71  0.86  1.28  0.54
10   2.42  1.08  0.34  0.24  0.30  0.65  0.22  0.16  0.48  0.09
20   0.83  0.68  0.45  0.14  0.85  0.41  0.14  0.19  0.59  0.08
50   0.53  0.03  0.41  0.17  0.22  0.20  0.19  0.44  0.09  0.20
100  0.16  0.45  0.25  0.06  0.05  0.33  0.21  0.20  0.21  0.09
""")
TABLE_4 = columns("""
Features  CL hypercolumn  LEAD hypercolumn  raw MAE  clustering, no LCR  clustering and LCR
Same      0.69            2.35              0.55     0.30                0.27
Diff.     5.37            6.22              3.51     4.04                1.61
""")
FIGURE_5 = columns("""
Method     CL     LEAD (stage 1)  SCE-MAE
SC         0.602  0.613           0.679
deviation  0.013  0.014           0.013
""")
SETS = ("MAFL", "AFLW_M", "AFLW_RO", "AFLW_RC", "300W")
COUNTS = ("1", "5", "10", "20", "50", "100")


def test_table_1_is_the_papers():
    wanted = dict(zip(named(TABLE_1), numbers(TABLE_1, ("Same", "Diff.")), strict=True))
    assert list(paper_results.MATCHING.items()) == list(wanted.items())  # in the paper's order


def test_table_2_is_the_papers():
    wanted = dict(zip(named(TABLE_2, "Feature Dim."), numbers(TABLE_2, SETS), strict=True))
    assert list(paper_results.DETECTION.items()) == list(wanted.items())
    assert tuple(name.lower() for name in SETS) == paper_results.DETECTION_SETS


def test_table_3_is_the_papers():
    means, deviations = numbers(TABLE_3, COUNTS), numbers(TABLE_3_DEVIATIONS, COUNTS)
    rows = [tuple(zip(*row, strict=True)) for row in zip(means, deviations, strict=True)]
    assert list(paper_results.FEW_SHOT.items()) == list(zip(named(TABLE_3), rows, strict=True))
    assert tuple(map(int, COUNTS)) == paper_results.FEW_SHOT_COUNTS


def test_table_4_is_the_papers():
    wanted = zip(TABLE_4["Features"], numbers(TABLE_4, ("Same", "Diff.")), strict=True)
    assert list(paper_results.ABLATION.items()) == list(wanted)


def test_figure_5_is_the_papers():
    wanted = zip(FIGURE_5["Method"], numbers(FIGURE_5, ("SC", "deviation")), strict=True)
    assert list(paper_results.SILHOUETTE.items()) == list(wanted)


def test_an_error_is_found_by_its_number_of_annotated_faces():
    row = paper_results.FEW_SHOT["LEAD", 128]
    found = paper_results.few_shot_error(row, 50)
    assert (found.mean, found.sd, found.count) == (8.89, 0.20, 0)
    assert paper_results.few_shot_error(row, 2) is None


PRESETS = {
    "stage 1": STAGE1_PRESETS["paper"],
    **{f"stage 2, {size}": stage2_preset("paper", size) for size in ("deit-tiny", "deit-small", "deit-base")},
}

PAPER_SETTINGS = [
    ("stage 1", "architecture", "deit-base"),  # Sec. 4, "Implementation Details": DeiT-T, DeiT-S and DeiT-B
    ("stage 1", "input_size", 96),  # Sec. 4: "crop the center 96 x 96"
    ("stage 1", "patch_size", 8),  # Sec. 4: "patch size of 8"
    ("stage 1", "batch_size", 512),  # Sec. 4: "a batch size of 512"
    ("stage 1", "learning_rate", 0.0003),  # Sec. 4: "a learning rate of 3e-4"
    ("stage 1", "epochs", 400),  # Sec. 4: "400 epochs"
    ("stage 1", "decoded_ratio", 1.0),  # Sec. 3.1: f_p has [MASK] in all masked positions
    # Not in the paper: He et al. (CVPR 2022), whom it follows, Sec. 3 and Appendix A.1.
    ("stage 1", "mask_ratio", 0.75),
    ("stage 1", "decoder_depth", 8),
    ("stage 1", "decoder_width", 512),
    ("stage 1", "decoder_heads", 16),
    ("stage 1", "normalise_pixels", True),
    ("stage 1", "betas", (0.9, 0.95)),
    ("stage 1", "weight_decay", 0.05),
    ("stage 1", "warmup", 0.1),  # 40 of 400 epochs
    ("stage 1", "crop_area", (0.2, 1.0)),
    ("stage 1", "crop_ratio", (3 / 4, 4 / 3)),
    ("stage 1", "clip_norm", None),
    # Sec. 4: "0.25 for DeiT-B and 0.1 for DeiT-T and DeiT-S".
    ("stage 2, deit-tiny", "attentive_ratio", 0.1),
    ("stage 2, deit-small", "attentive_ratio", 0.1),
    ("stage 2, deit-base", "attentive_ratio", 0.25),
    # Table 1: dimensions of the rows DeiT-T, DeiT-S (the better of two), DeiT-B; CL's temperature at that dimension.
    ("stage 2, deit-tiny", "projector_dim", 64),
    ("stage 2, deit-small", "projector_dim", 128),
    ("stage 2, deit-base", "projector_dim", 256),
    ("stage 2, deit-tiny", "temperature", 1 / 8),
    ("stage 2, deit-small", "temperature", 1 / 7),
    ("stage 2, deit-base", "temperature", 1 / 7),
    *(
        (f"stage 2, {size}", setting, value)
        for size in ("deit-tiny", "deit-small", "deit-base")
        for setting, value in (
            ("cluster_block", 3),  # Sec. 4: "after the third encoder layer"
            ("num_clusters", 4),  # Sec. 4: "the number of clusters K_c to 4"
            ("attentive_repellence", 5),  # Sec. 4: "r_attn-attn = 5, r_attn-inattn = 5, r_inattn-inattn = 2"
            ("mixed_repellence", 5),
            ("center_repellence", 2),
            ("locality", "log-cells"),  # Eq. 5
            ("reduction", "sum"),  # Eq. 7
            ("attend", "most"),  # Sec. 3.2: "highest similarity"
            ("amplitude", 0),  # Fig. 2: faces as they are
            ("flip", False),
            ("faces_together", 1),  # Eq. 4: the tokens of x
            ("keys", "all"),
        )
    ),
]


@pytest.mark.parametrize(("stage", "setting", "value"), PAPER_SETTINGS, ids=lambda cell: str(cell).replace(" ", ""))
def test_the_preset_has_the_papers_setting(stage, setting, value):
    assert getattr(PRESETS[stage], setting) == value


@pytest.mark.parametrize(("name", "millions"), [("deit-tiny", 5.4), ("deit-small", 21.4), ("deit-base", 85.3)])
def test_the_backbones_have_the_papers_parameters(name, millions):
    """Tables 1 and 2, "#Param.", counted layer by layer: 12 blocks of the ViT, D wide, on 144 patches of 8 x 8 x 3."""
    width = BACKBONES[name].width
    block = 12 * width**2 + 13 * width  # qkv and projection 4 D^2 + 4 D, MLP 8 D^2 + 5 D, two norms 4 D
    whole = 12 * block + (192 + 1) * width + (144 + 1 + 1) * width + 2 * width  # patches; places and CLS; norm
    assert BACKBONES[name].params == whole
    assert round(whole / 1e6, 1) == millions
