"""Measure speeds, comparable within one run only (Linux): python examples/measure_speed.py [IMAGES [DTYPES]]"""

import ctypes
import re
import sys
import time
from functools import partial
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

import scemae
from scemae.matching import similarity_maps
from scemae.model.cover_and_stride import shifts, view_margin

count = int(sys.argv[1]) if len(sys.argv) > 1 else 16
dtypes = sys.argv[2].split(",") if len(sys.argv) > 2 else ["float32", "bfloat16"]
MARGIN = view_margin()
views = torch.rand(count, 3, 96 + 2 * MARGIN, 96 + 2 * MARGIN) * 4 - 2


def measure_seconds(run):
    """Time of the fastest of three runs after a warm-up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def peak_memory_mb():
    """The most memory that the process has held since the peak was last cleared."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


def run_batched(model, expansion):
    return model(views, expansion)


def run_one_by_one(model, expansion):
    """Cover-and-stride as a plain loop: one window of one image at a time."""
    dtype, offsets = model.backbone.cls_token.dtype, [MARGIN + shift for shift in shifts(expansion)]
    windows = (view[None, :, y : y + 96, x : x + 96] for view in views.to(dtype) for y in offsets for x in offsets)
    return [model.backbone(window) for window in windows]


def compute_hypercolumn(resnet, images):
    """The feature of DVE, CL and LEAD: four stages of a ResNet-50, each resized to 48 x 48. Random weights do here."""
    return torch.cat([F.interpolate(stage.float(), size=(48, 48), mode="bilinear") for stage in resnet(images)], dim=1)


def match_naively(descriptors, feature_map):
    """The similarity maps by upsampling the map first."""
    upsampled = F.interpolate(feature_map[None], size=(96, 96), mode="bilinear", align_corners=False)[0]
    return torch.einsum("kc,chw->khw", descriptors, F.normalize(upsampled, dim=0))


with torch.inference_mode():
    for dtype in dtypes:
        model = scemae.load_model(dtype=dtype)
        for expansion in (1, 2, 4):
            batched, one_by_one = (
                count / measure_seconds(partial(run, model, expansion)) for run in (run_batched, run_one_by_one)
            )
            print(f"{dtype}, expansion {expansion}: {batched:.1f} images/s; one window at a time: {one_by_one:.1f}")
        resnet = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4)).eval()
        images = views[..., MARGIN:-MARGIN, MARGIN:-MARGIN].to(getattr(torch, dtype))
        elapsed = measure_seconds(partial(compute_hypercolumn, resnet.to(images.dtype), images))
        print(f"{dtype}, ResNet-50 hypercolumn at 48 x 48: {count / elapsed:.1f} images/s")
    descriptors, feature_map = F.normalize(torch.randn(68, 256), dim=1), torch.randn(256, 48, 48)
    ours = partial(similarity_maps, descriptors, feature_map, model.grid(4), 96)
    naively = partial(match_naively, descriptors, feature_map)
    for name, run in (("inner products first", ours), ("naive upsampling", naively)):
        milliseconds = 1000 * measure_seconds(run)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak to the present size
        before = peak_memory_mb()
        run()
        used = peak_memory_mb() - before
        print(f"68 points on a 256 x 48 x 48 map, {name}: {milliseconds:.1f} ms, {used:.1f} MB at most")
