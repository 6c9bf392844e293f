"""The two pictures of README.md: python examples/readme_pictures.py [FOLDER]   (needs matplotlib)"""

import re
import sys
from pathlib import Path

from matplotlib import pyplot as plt
from PIL import Image, ImageDraw

import scemae
from scemae import draw
from scemae.evaluation.paper_results import FEW_SHOT, FEW_SHOT_COUNTS
from scemae.samples import sample_faces

ROOT = Path(__file__).parents[1]
DARK, LIGHT, ACCENT = "#16181d", "#dee2e8", "#5ce1e6"  # opaque and dark: one picture for light and dark pages
PUBLISHED = {("SCE-MAE", 256): "#f2b35e", ("LEAD", 256): "#b79cf2", ("DVE", 64): "#8d97a5"}
# Clicked on the first sample face, in addition to its eight points: a landmark is whatever you say it is.
EYES = {"left_outer": (206, 190), "left_inner": (239, 190), "right_inner": (287, 188.5), "right_outer": (321, 186.5)}
NOSE = {"left_nostril": (242, 243), "right_nostril": (291, 243), "nose_bridge": (264, 190)}


def draw_faces():
    """Similarity to one point | matched points | a detector fitted on one face, on a tilted photo."""
    annotated, new = sample_faces()
    model = scemae.load_model()
    images, boxes = [annotated.path, new.path], [annotated.box, new.box]
    fine = scemae.extract_features(model, images, boxes=boxes, expansion=4)
    similar = scemae.match_landmarks(fine[0], annotated.landmarks, fine[1], use="projected", keep_similarity=True)
    heat = similar.draw_similarity("nose_tip")
    faces = scemae.extract_features(model, images, boxes=boxes)
    matches = scemae.match_landmarks(faces[0], annotated.landmarks, faces[1], prior=25)
    regressor = scemae.fit_regressor(model, faces[0], annotated.landmarks | EYES | NOSE)
    tilted = Image.open(new.path).rotate(25, Image.Resampling.BICUBIC, center=(225.5, 131.5))
    found = regressor.predict(tilted, boxes=new.box)
    side, cut = draw.PANEL, 42  # px of a panel, and of them cut off at the outer sides
    target = side + draw.GAP  # where the panel of the first target begins
    panels = {  # without the captions and the legends
        "similarity to a nose tip": heat.crop((target + cut, 0, target + side - cut, side)),
        "matched points, no training": matches.draw().crop((cut, 0, target + side - cut, side)),
        "detector from one face": found.draw().crop((cut, 0, side - cut, side)),
    }
    titles = [Image.new("RGB", (panel.width, 48), DARK) for panel in panels.values()]
    for title, text in zip(titles, panels, strict=True):
        draw.write(ImageDraw.Draw(title), (title.width / 2, 30), text, 27, anchor="mm")
    return draw.stack_rows([draw.row(titles), draw.row(list(panels.values()))])


def draw_curve():
    """Error against the number of annotated faces, from docs/benchmarks.md and the paper's Table 3."""
    table = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    [row] = re.findall(r"^\| cascade on .*?\| (.*) \|$", table, re.MULTILINE)
    errors, deviations = zip(*(map(float, cell.split(" ± ")) for cell in row.split(" | ")), strict=True)
    plt.rcParams |= dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color"), LIGHT)
    plt.rcParams |= {"ytick.color": LIGHT, "font.size": 15, "axes.spines.top": False, "axes.spines.right": False}
    figure, axes = plt.subplots(figsize=(8, 4.6), facecolor=DARK, layout="constrained")
    axes.set_facecolor(DARK)
    for key, colour in PUBLISHED.items():
        means, spreads = zip(*FEW_SHOT[key], strict=True)
        axes.errorbar(FEW_SHOT_COUNTS, means, spreads, color=colour, fmt="o--", linewidth=1.8, capsize=3)
        axes.text(112, means[-1], key[0], color=colour, va="bottom" if key[0] == "LEAD" else "center")
    axes.errorbar(FEW_SHOT_COUNTS, errors, deviations, color=ACCENT, fmt="o-", linewidth=3, capsize=3)
    axes.text(112, errors[-1], "scemae", color=ACCENT, va="center", weight="bold")
    for count, error, deviation in zip(FEW_SHOT_COUNTS, errors, deviations, strict=True):
        axes.text(count, error - deviation - 0.5, f"{error:.2f}", color=ACCENT, ha="center", va="top", size=13)
    axes.text(280, 23, "dashed: published, with\nanother head, not aligned", ha="right", va="top", size=13)
    axes.set(xscale="log", xlim=(0.78, 300), ylim=(0, 24))
    axes.set(xlabel="annotated faces", ylabel="error, % of inter-ocular distance")
    axes.set_xticks(FEW_SHOT_COUNTS, FEW_SHOT_COUNTS)
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", color=LIGHT, alpha=0.12)
    return figure


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "pictures"
    draw_faces().save(folder / "readme-faces.jpg", quality=88)
    draw_curve().savefig(folder / "readme-few-shot.png", dpi=160)
    print(folder)
