"""The commands download, verify and push."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scemae import weights
from scemae.errors import OptionError, escape_lines
from scemae.weights.hub import repository_url
from scemae.weights.model_folder import CARD
from scemae.weights.upload import collect_files, push_files
from scemae.weights.zoo import DEFAULT


def download(args: argparse.Namespace) -> tuple[Any, str]:
    """Fetch a model or detector into the Hub's cache, or into a folder for machines without a network."""
    files = weights.download(
        args.source, args.to, overwrite=args.overwrite, endpoint=args.endpoint, cache_dir=args.cache_dir
    )
    return _to_json(files), _to_text(files)


def verify(args: argparse.Namespace) -> tuple[Any, str]:
    """Check the SHA-256 of a model or detector on this machine, without any network request."""
    found = weights.verify(args.source, cache_dir=args.cache_dir)
    return [_to_json(files) for files in found], "\n".join(_to_text(files) for files in found)


def push(args: argparse.Namespace) -> tuple[Any, str]:
    """Upload a model folder or a detector to the Hub, after showing the files and asking for confirmation."""
    files = collect_files(args.path, args.repo)
    _show_files(files, args)
    _confirm_upload(args)
    source = push_files(args.repo, files, private=args.private, tag=args.tag, endpoint=args.endpoint)
    url, commit = repository_url(args.repo, args.endpoint), source.partition("@")[2]
    return {"url": url, "commit": commit, "tag": args.tag, "source": source}, f"{url}\npinned: {source}"


def add_commands(add: Any) -> None:
    """Add the commands to the parser. `add(run, *parents)` makes a sub-command of a function."""
    endpoint = argparse.ArgumentParser(add_help=False)
    endpoint.add_argument("--endpoint", metavar="URL", help="URL of a mirror of the Hub (default: $HF_ENDPOINT).")
    cache = argparse.ArgumentParser(add_help=False)
    cache.add_argument("--cache-dir", metavar="DIR", help="Cache of the Hub's files (default: $HF_HUB_CACHE).")

    command = add(download, endpoint, cache)
    command.add_argument("source", help="Name of a released model, or hf-hub:ORG/REPO[@REVISION].")
    command.add_argument("--to", metavar="DIR", help="Copy the files into DIR/NAME; SCEMAE_WEIGHTS_DIR may name DIR.")
    command.add_argument("--overwrite", action="store_true", help="Replace files in DIR/NAME that differ.")
    command = add(verify, cache)
    command.add_argument(
        "source",
        nargs="?",
        default=DEFAULT,
        help="Name of a released model, hf-hub:ORG/REPO[@REVISION], the folder of a model or detector, or a folder of "
        f"such folders (default: {DEFAULT}).",
    )
    command = add(push, endpoint)
    command.add_argument("path", help="Model folder, or file of a detector.")
    command.add_argument("repo", metavar="ORG/REPO", help="Repository to upload to; created if it does not exist.")
    command.add_argument("--private", action="store_true", help="Create a private repository.")
    command.add_argument("--tag", help="Tag to give the new commit.")
    command.add_argument("--yes", action="store_true", help="Upload without asking.")


def _show_files(files: Mapping[str, Path | bytes], args: argparse.Namespace) -> None:
    """Print what will be uploaded: each file with its size and SHA-256, and the whole card."""
    contents = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in files.items()}
    lines = [f"For {args.repo}, tagged {args.tag}:" if args.tag else f"For {args.repo}:"]
    for name, content in contents.items():
        lines.append(f"  {name}  {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}")
    print(escape_lines("\n".join([*lines, f"{CARD}:", contents[CARD].decode()])), file=sys.stderr)


def _confirm_upload(args: argparse.Namespace) -> None:
    if args.yes:
        return
    if sys.stdin.isatty():
        print("Upload this? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise OptionError("Nothing was uploaded. Pass --yes to upload without being asked.")


def _to_json(files: weights.VerifiedFiles) -> dict[str, Any]:
    return {"folder": str(files.folder), "sha256": dict(files.sha256)}


def _to_text(files: weights.VerifiedFiles) -> str:
    return f"OK: {', '.join(files.sha256)} in {files.folder}"
