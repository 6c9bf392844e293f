"""The commands download, verify and push."""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scemae.errors import OptionError
from scemae.weights import transfer
from scemae.weights.hub import push_files
from scemae.weights.model_folder import CARD
from scemae.weights.zoo import Located


def download(options: argparse.Namespace) -> tuple[Any, str]:
    """Fetch a model or regressor, into the Hub's cache or a folder for machines without a network."""
    found = transfer.download(
        options.source,
        options.to,
        overwrite=options.overwrite,
        endpoint=options.endpoint,
        cache_dir=options.cache_dir,
    )
    return _row(found), _line(found)


def verify(options: argparse.Namespace) -> tuple[Any, str]:
    """Check the files of a model, repository or folder on this machine; without a name, of all released models."""
    if options.source is not None:
        found = transfer.verify(options.source, cache_dir=options.cache_dir)
        return [_row(one) for one in found], "\n".join(_line(one) for one in found)
    models = transfer.verify_all(cache_dir=options.cache_dir)
    lines = [f"{name}: {_line(one) if one else 'not on this machine'}" for name, one in models.items()]
    return {name: one and _row(one) for name, one in models.items()}, "\n".join(lines)


def push(options: argparse.Namespace) -> tuple[Any, str]:
    """Upload a model folder or a fitted regressor to the Hub; shows what first, and asks."""
    files = transfer.to_push(options.path, options.repo)
    _show(files, options)
    _confirm(options)
    url, commit = push_files(options.repo, files, private=options.private, tag=options.tag, endpoint=options.endpoint)
    source = f"hf-hub:{options.repo}@{commit}"
    return {"url": url, "commit": commit, "tag": options.tag, "source": source}, f"{url}\npinned: {source}"


def add_commands(add: Any) -> None:
    """Add the commands to the parser. `add(run, *parents)` makes a sub-command of a function."""
    reached = argparse.ArgumentParser(add_help=False)
    reached.add_argument("--endpoint", metavar="URL", help="a mirror of the Hub; default: HF_ENDPOINT")
    kept = argparse.ArgumentParser(add_help=False)
    kept.add_argument("--cache-dir", metavar="DIR", help="cache of the Hub's files; default: HF_HUB_CACHE")

    downloading = add(download, reached, kept)
    downloading.add_argument("source", help="name of a model, or hf-hub:ORG/REPO[@REVISION]")
    downloading.add_argument("--to", metavar="DIR", help="copy the files into DIR/NAME, for SCEMAE_WEIGHTS_DIR=DIR")
    downloading.add_argument("--overwrite", action="store_true", help="replace files that differ")
    add(verify, kept).add_argument("source", nargs="?", help="name, hf-hub:ORG/REPO[@REVISION], or folder")
    pushing = add(push, reached)
    pushing.add_argument("path", help="model folder, or file of a regressor")
    pushing.add_argument("repo", metavar="ORG/REPO", help="made if it is not there")
    pushing.add_argument("--private", action="store_true", help="make a new repository a private one")
    pushing.add_argument("--tag", help="name of the new commit")
    pushing.add_argument("--yes", action="store_true", help="do not ask")


def _show(files: Mapping[str, Path | bytes], options: argparse.Namespace) -> None:
    """What will be uploaded: each file with size and SHA-256, and the whole card."""
    contents = {name: file if isinstance(file, bytes) else file.read_bytes() for name, file in files.items()}
    tagged = f", tagged {options.tag}" if options.tag else ""
    print(f"For {options.repo}{tagged}:", file=sys.stderr)
    for name, content in contents.items():
        print(f"  {name}  {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}", file=sys.stderr)
    print(f"{CARD}:\n{contents[CARD].decode()}", file=sys.stderr)


def _confirm(options: argparse.Namespace) -> None:
    if options.yes:
        return
    if sys.stdin.isatty():
        print("Upload this? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() in ("y", "yes"):
            return
    raise OptionError("Nothing was uploaded. Pass --yes to upload without being asked.")


def _row(found: Located) -> dict[str, Any]:
    return {"folder": str(found.folder), "sha256": dict(found.sha256)}


def _line(found: Located) -> str:
    return f"{found.folder}: {', '.join(found.sha256)}: right"
