"""How to reach the Hub: what everything that may fetch a file takes as keyword arguments."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

HUB = "hf-hub:"


class HubOptions(TypedDict, total=False):
    """How to reach the Hub. What is left out is huggingface_hub's to decide, from its own environment variables.

    Args:
        endpoint: the URL of a mirror; default $HF_ENDPOINT, else https://huggingface.co.
        cache_dir: where fetched files are kept; default $HF_HUB_CACHE, else ~/.cache/huggingface/hub.
        token: for gated and private repositories; default $HF_TOKEN, else what `hf auth login` stored.
        local_files_only: make no request; $HF_HUB_OFFLINE=1 does the same, if it is set before Python starts.
    """

    endpoint: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


def validate_hub_options(hub: HubOptions) -> None:
    """Raise TypeError for a keyword that is none of `HubOptions`, as Python does where it knows the names."""
    known = HubOptions.__annotations__
    unknown = sorted(hub.keys() - known)
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; those about the Hub are {', '.join(known)}")
