"""The Hugging Face Hub: files of repositories, out of the cache or fetched, always checked; and pushing folders."""

from scemae.hub.options import HUB, HubOptions, checked_options
from scemae.hub.push import Pushed, push_files
from scemae.hub.repository import Repository, fetch, vouched

__all__ = ["HUB", "HubOptions", "Pushed", "Repository", "checked_options", "fetch", "push_files", "vouched"]
