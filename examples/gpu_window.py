"""Use a limited time on a GPU: a short profile, then the longest useful run of stage 1 in the minutes that are left.

python examples/gpu_window.py --pack PACK --out OUT --minutes 15
python examples/gpu_window.py --pack PACK --out OUT2 --minutes 15 --resume-from OUT     # the next window

The first window measures images per second by architecture and batch size, chooses the batch size, and sets the length
of the schedule to what all --windows will make. OUT gets profile.json, and every few minutes the checkpoint, the log
and the model, in parts with --part-size. Minutes count from the start of this script.
"""

import argparse
import gc
import json
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import torch

from scemae.errors import RunError, ScemaeError
from scemae.output import atomic_write
from scemae.training.engine import train
from scemae.training.pack import Pack
from scemae.training.run_config import STAGE1_PRESETS, CardFields, RunOptions, Stage1Config
from scemae.training.run_profile import describe_profile
from scemae.training.stage1 import Stage1
from scemae.weights.model_folder import file_sha256

STARTED = time.monotonic()
PAPER_IMAGES = 65_108_000  # 400 epochs of 162,770 faces
RESERVE = 45  # seconds at the end: model, checkpoint, copies
COMPILING = 60  # seconds that the compilation of a window takes, at most
SURE = 0.95  # of the measured rate
CONFIG, MANIFEST = "config.json", "manifest.json"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", type=Path, required=True, help="Faces, as `scemae data pack` wrote them.")
    parser.add_argument("--out", type=Path, required=True, help="Folder that is kept; new, or of this script.")
    parser.add_argument("--work", type=Path, default=Path("gpu_window_run"), help="Folder of the run on this machine.")
    parser.add_argument("--minutes", type=float, default=15, help="Minutes of this window.")
    parser.add_argument("--windows", type=int, default=1, help="Windows of as many minutes that the schedule fills.")
    parser.add_argument("--most-images", type=int, default=PAPER_IMAGES, help="Images at most; default: the paper's.")
    parser.add_argument("--resume-from", type=Path, help="OUT of the window before.")
    parser.add_argument("--profile-seconds", type=float, default=60, help="Of the profile, besides compiling.")
    parser.add_argument("--architectures", nargs="+", default=["deit-tiny", "deit-small"], help="The first is trained.")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2048, 4096, 1024], help="Those to try.")
    parser.add_argument("--learning-rate", type=float, help="Default: 1.5e-3 from scratch, 5e-4 continued.")
    parser.add_argument("--continue-from", help="Model to start from; decoder.safetensors should be beside it.")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="Default: as `scemae train stage1`.")
    parser.add_argument("--copy-minutes", type=float, default=2.0, help="Minutes between two copies to OUT.")
    parser.add_argument("--part-size", type=float, help="Split files into parts of at most so many MB (1e6 bytes).")
    return parser.parse_args()


def seconds_left(args):
    return 60 * args.minutes - (time.monotonic() - STARTED) - overhead(args, RESERVE)


def overhead(args, seconds):
    """So many seconds, fewer in a very short window, as in a trial."""
    return seconds * min(1, args.minutes / 5)


def say(*words):
    print(f"[{time.monotonic() - STARTED:6.1f} s]", *words, flush=True)


def make_recipe(args, config):
    return Stage1(
        config, Pack.open(args.pack), CardFields(name="gpu-window", training_data=f"faces of {args.pack.name}")
    )


def measure(args, config, seconds, compiled):
    """A row of the profile: a short run of these settings."""
    out = args.work / "profile"
    config = replace(config, steps=500, continue_from=None)
    options = RunOptions(compile=compiled, profile=True, overwrite=True, max_hours=seconds / 3600)
    try:
        row = train(make_recipe(args, config), out, options).profile
    except torch.OutOfMemoryError:
        row = None
    text = describe_profile(row) if row else "out of memory"
    row = row or {"images_per_second": 0.0, "compiled": "no"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    say(f"{config.architecture}, batches of {config.batch_size}, compiled: {row['compiled']}:", text)
    return {"architecture": config.architecture, "batch_size": config.batch_size, **row}


def profile(args, base):
    """Measure in --profile-seconds; returns the batch size for the first architecture, and its images per second."""
    pairs = [(name, size) for size in args.batch_sizes for name in args.architectures]
    compiles = args.compile is not False
    end = time.monotonic() + args.profile_seconds * (0.6 if compiles else 1)
    rows = []
    for number, (name, size) in enumerate(pairs):
        share = (end - time.monotonic()) / (len(pairs) - number)
        if share <= 0:
            say("no time to measure", pairs[number:])
            break
        # Compiling takes most of a minute: the pairs are compared without it.
        rows.append(measure(args, replace(base, architecture=name, batch_size=size), share / 2, False))
    ours = [row for row in rows if row["architecture"] == base.architecture]
    best = max((row["images_per_second"] for row in ours), default=0.0)
    if not best:
        raise RunError(f"{base.architecture} was not measured; pass smaller --batch-sizes or more --profile-seconds.")
    # The smallest batch that is nearly as fast: it makes the most updates.
    size = min(row["batch_size"] for row in ours if row["images_per_second"] > 0.95 * best)
    if compiles:
        seconds = args.profile_seconds * 0.4 + COMPILING
        rows.append(measure(args, replace(base, batch_size=size), seconds, args.compile))
        best = max(best, rows[-1]["images_per_second"])
    with atomic_write(args.out / "profile.json") as path:
        path.write_text(json.dumps(rows, indent=1))
    return size, best


def plan(args):
    """Profile; the configuration of the run."""
    rate = args.learning_rate or (5e-4 if args.continue_from else 1.5e-3)
    base = replace(
        STAGE1_PRESETS["cpu"],
        architecture=args.architectures[0],
        batch_size=args.batch_sizes[0],
        learning_rate=rate,
        clip_norm=1.0,
        continue_from=args.continue_from,
    )
    size, best = profile(args, base)
    later = (args.windows - 1) * (60 * args.minutes - overhead(args, COMPILING + RESERVE))
    images = SURE * best * (max(1.0, seconds_left(args)) + later)
    return replace(base, batch_size=size, steps=max(1, int(min(images, args.most_images) / size)))


def copy_out(args, run, number):
    """Copy what is worth keeping to OUT/copy-0 or OUT/copy-1, in turn, so that one of them is always whole."""
    folder = args.out / f"copy-{number % 2}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    size = int(args.part_size * 1e6) if args.part_size else 2**30
    parts = {}
    for path in sorted([run / "checkpoint.pt", run / "log.jsonl", run / CONFIG, *run.glob("model/*")]):
        if not path.is_file():
            continue
        name = path.relative_to(run).as_posix()
        with path.open("rb") as file:  # a checkpoint that is replaced meanwhile stays open whole
            parts[name] = []
            while chunk := file.read(size):
                part = folder / f"{name.replace('/', '__')}.{len(parts[name]):03}"
                part.write_bytes(chunk)
                parts[name].append({"part": part.name, "sha256": file_sha256(part)})
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(json.dumps({"number": number, "files": parts}, indent=1))
    say(f"copied to {folder}:", ", ".join(parts))


def copy_in(source, run):
    """Put together the newest whole copy that a window before left in `source`."""
    manifests = [json.loads(path.read_text()) | {"folder": path.parent} for path in source.glob(f"copy-*/{MANIFEST}")]
    for manifest in sorted(manifests, key=lambda manifest: -manifest["number"]):
        parts = [manifest["folder"] / part["part"] for parts in manifest["files"].values() for part in parts]
        hashes = [part["sha256"] for parts in manifest["files"].values() for part in parts]
        if all(path.is_file() for path in parts) and [file_sha256(path) for path in parts] == hashes:
            break
    else:
        raise RunError(f"{source} holds no whole copy of a run; pass the --out of the window before.")
    for name, pieces in manifest["files"].items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        with (run / name).open("wb") as file:
            for piece in pieces:
                file.write((manifest["folder"] / piece["part"]).read_bytes())
    say(f"resumed from {manifest['folder']}")


def main():
    args = parse_arguments()
    run = args.work / "run"
    args.out.mkdir(parents=True, exist_ok=True)
    if args.resume_from:
        shutil.rmtree(run, ignore_errors=True)
        copy_in(args.resume_from, run)
    if (run / CONFIG).exists():
        config = Stage1Config.from_json((run / CONFIG).read_text())
    else:
        config = plan(args)
        run.mkdir(parents=True, exist_ok=True)
        (run / CONFIG).write_text(config.to_json())
    left = max(1.0, seconds_left(args))
    say(f"{config.architecture}: {config.steps} steps of {config.batch_size}, {left:.0f} s of training at most")
    done, number = threading.Event(), 0

    def keep_copying():
        nonlocal number
        while not done.wait(60 * args.copy_minutes):
            if (run / "checkpoint.pt").exists():
                copy_out(args, run, number)
                number += 1

    copying = threading.Thread(target=keep_copying, daemon=True)
    copying.start()
    options = RunOptions(
        resume=True,
        profile=True,
        compile=args.compile,
        max_hours=left / 3600,
        checkpoint_minutes=args.copy_minutes / 2,
    )
    try:
        history = train(make_recipe(args, config), run, options)
    finally:  # also after Ctrl-C, SIGTERM, and a loss that is no number
        done.set()
        copying.join()
        if (run / "checkpoint.pt").exists():
            copy_out(args, run, number)
            shutil.rmtree(args.out / f"copy-{(number + 1) % 2}", ignore_errors=True)
    if history.profile:
        say(describe_profile(history.profile))
    say(f"step {history.step} of {config.steps}, {history.step * config.batch_size:,} images")


if __name__ == "__main__":
    try:
        main()
    except ScemaeError as error:
        sys.exit(f"{error}")
