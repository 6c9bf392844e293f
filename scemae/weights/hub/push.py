"""Files to a repository of the Hub, as one commit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from scemae.errors import GatedWeightsError, OptionError, OutputError, ScemaeError
from scemae.weights.hub.client import patience, status, within


class Pushed(NamedTuple):
    """Where a push went: the page of the repository, and the commit, which pins it."""

    url: str
    commit: str


def push_files(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool = False,
    tag: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> Pushed:
    """Upload files (name -> path or content) to a repository, which is made if it is not there; `tag` the commit.

    Raises GatedWeightsError where the token may not write there, OptionError where the tag exists already or a
    repository that shall be `private` is a public one, OutputError for all else that goes wrong.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi(endpoint=endpoint, token=token, library_name="scemae")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        within(patience(), api.whoami)
        url = api.create_repo(repo, private=private, exist_ok=True)
        if private and not api.repo_info(repo).private:
            raise OptionError(f"{repo} is public, and nothing was uploaded; choose another, or leave out --private.")
        if tag in [known.name for known in api.list_repo_refs(repo).tags]:
            raise OptionError(f"{repo} has a tag {tag!r} already, and nothing was uploaded; choose another --tag.")
        commit = api.create_commit(repo, operations, commit_message="Upload by scemae").oid
        if tag:
            api.create_tag(repo, tag=tag, revision=commit)
    except ScemaeError:
        raise
    except Exception as error:  # the transports of the client's versions have no base in common
        raise _explained(repo, api.endpoint, error) from error
    return Pushed(str(url), commit)


def _explained(repo: str, endpoint: str, error: Exception) -> ScemaeError:
    from huggingface_hub.errors import LocalTokenNotFoundError

    if status(error) in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return GatedWeightsError(
            f"This token may not write to {repo} on {endpoint}. Make one that may, on your settings page there; then "
            "`hf auth login`, set HF_TOKEN or pass token=."
        )
    reason = f"no answer within {patience():g} s" if isinstance(error, TimeoutError) else " ".join(str(error).split())
    return OutputError(f"{repo} on {endpoint} could not be written: {type(error).__name__}: {reason}.")
