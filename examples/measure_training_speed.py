"""Measure how much faster stage 1 trains than a plain loop: same network, batch, masks and decoded patches.

The plain loop: torchvision's random crops, eager, PyTorch's fused attention, bf16 autocast, default AdamW.
Ours: `scemae train stage1`, started by torchrun with one single-threaded process per core.
python examples/measure_training_speed.py [--pack PACK] [--steps 12] [--rounds 3]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torchvision.transforms import v2

from scemae.training.acceleration import fuse_attention
from scemae.training.pack import Pack, write_pack
from scemae.training.run_config import STAGE1_PRESETS, CardFields
from scemae.training.stage1 import Stage1

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--pack", type=Path, help="Pack of faces. Default: random noise.")
parser.add_argument("--steps", type=int, default=12, help="Steps of the plain loop per round; ours runs twice as many.")
parser.add_argument("--rounds", type=int, default=3, help="How often the two are measured in turn.")
parser.add_argument("--batch-size", type=int, default=128, help="Images per step.")
args = parser.parse_args()


def measure_plain_loop(recipe, steps):
    """Images per second of the plain loop."""
    config, module = recipe.config, recipe.module
    to_float, normalise = v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)
    random_crop = v2.RandomResizedCrop(96, config.crop_area, config.crop_ratio)
    crop = v2.Compose([random_crop, v2.RandomHorizontalFlip(), to_float, normalise])
    optimizer = torch.optim.AdamW(module.parameters(), config.learning_rate, config.betas)
    fuse_attention(module, True)
    start = 0.0
    for step in range(steps + 1):
        if step == 1:  # the first step warms up
            start = time.perf_counter()
        squares, _, orders = recipe.load(step, slice(None))
        images = torch.stack([crop(square.permute(2, 0, 1)) for square in squares])
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(images, orders)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * config.batch_size / (time.perf_counter() - start)


def measure_command(pack, out, steps):
    """Images per second of the command, one single-threaded process per core."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(os.cpu_count())]
    train = ["-m", "scemae", "train", "stage1", "--preset", "cpu", "--data", pack, "--out", out, "--name", "speed"]
    settings = ["--steps", str(steps + 3), "--batch-size", str(args.batch_size), "--precision", "bf16"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*launch, *train, *settings], env=one_thread, check=True, capture_output=True)
    lines = [json.loads(line) for line in Path(out, "log.jsonl").read_text().splitlines()]
    return statistics.harmonic_mean(line["images_per_second"] for line in lines[3:])  # the first steps compile


with tempfile.TemporaryDirectory() as folder:
    pack = args.pack
    if pack is None:
        pack = Path(folder, "pack")
        noise = np.random.default_rng(0).integers(0, 255, (512, 112, 112, 3), dtype=np.uint8)
        write_pack(pack, enumerate(noise), count=512, size=112, source="noise")
    config = replace(STAGE1_PRESETS["cpu"], batch_size=args.batch_size)
    rates = {"plain": [], "scemae": []}
    for number in range(args.rounds):
        recipe = Stage1(config, Pack.open(pack), CardFields(name="speed", training_data="faces"))
        rates["plain"].append(measure_plain_loop(recipe, args.steps))
        rates["scemae"].append(measure_command(pack, Path(folder, str(number)), 2 * args.steps))
    for name, values in rates.items():
        print(f"{name}: {statistics.median(values):.1f} images/s ({', '.join(f'{value:.1f}' for value in values)})")
    ratios = [ours / plain for plain, ours in zip(*rates.values(), strict=True)]
    print(f"ratio: {statistics.median(ratios):.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
