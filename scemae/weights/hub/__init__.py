"""The Hugging Face Hub: files of repositories, out of the cache or fetched, always checked; and pushing folders."""

from scemae.weights.hub.options import HUB, HubOptions, validate_hub_options
from scemae.weights.hub.push import Pushed, push_files
from scemae.weights.hub.repository import Repository, fetch, read_card_hashes

__all__ = [
    "HUB",
    "HubOptions",
    "Pushed",
    "Repository",
    "fetch",
    "push_files",
    "read_card_hashes",
    "validate_hub_options",
]
