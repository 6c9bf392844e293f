"""The Hub through the real client: what resolves to what, and all that may go wrong on the way."""

import base64
import gzip
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from errno import ENOSPC
from pathlib import Path

import pytest
from fakehub import altered, cut, endless, failing, lying, page, slow, untouched

import scemae
from scemae.errors import (
    GatedWeightsError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    OptionError,
    RevisionNotFoundError,
    WeightsIntegrityError,
    WeightsUnavailableError,
)
from scemae.weights import endpoint_guard, zoo
from scemae.weights.model_folder import CARD, CONFIG, WEIGHTS

NAME, REPO = "scemae-other", "scemae/scemae-other"
TINY = zoo.packaged_folder("scemae-tiny")
FILES = {name: (TINY / name).read_bytes() for name in (CONFIG, WEIGHTS, CARD)}
PATIENCE = 5.0  # s, for every error


@pytest.fixture
def hub(hub, model, monkeypatch):
    """That Hub, with one released model on it; and torch and timm are imported, which takes longer than any answer."""
    revision = hub.add(REPO, FILES)
    release = replace(zoo.RELEASED["scemae-tiny"], repo=REPO, revision=revision, bundled=False)
    monkeypatch.setitem(zoo.RELEASED, NAME, release)
    return hub


@pytest.fixture
def environment(hub, tmp_path):
    """The environment of a process that finds the Hub by HF_ENDPOINT."""
    return {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}


@pytest.fixture
def no_pauses(monkeypatch):
    """A client that waits a fifth of a second for an answer, and not at all between tries."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def folder_of(source, **reach):
    return zoo.locate_model(source, **reach).folder


def command(*arguments):
    return [sys.executable, "-m", "scemae", *arguments]


def refused(error, *words, source=NAME, **reach):
    """The error of a source that must not load, its words and its haste."""
    started = time.monotonic()
    with pytest.raises(error) as caught:
        scemae.load_model(source, **reach)
    assert time.monotonic() - started < PATIENCE
    for part in words:
        assert part in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


def cached(reach):
    """The whole files in the cache, links not counted."""
    return [path for path in reach["cache_dir"].rglob("blobs/*") if path.suffix != ".incomplete"]


def blob(reach, content):
    """The file of the cache with this content."""
    (path,) = (path for path in cached(reach) if path.read_bytes() == content)
    return path


@pytest.fixture
def outside(tmp_path):
    """Files of the user beside the cache. The test fails unless it leaves them, and all else there, as they are."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "key").write_bytes(b"private")
    with untouched(tmp_path):
        yield tmp_path / "outside"


def unused_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# ---- what a name resolves to


def test_a_released_name_is_fetched_once_and_then_needs_no_request(hub, reach, model, monkeypatch):
    assert scemae.load_model(NAME, **reach).id == model.id
    assert hub.count("GET") == 2
    hub.requests.clear()
    scemae.load_model(NAME, **reach)
    scemae.load_model(NAME, **reach, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    scemae.load_model(NAME, **reach)
    assert hub.requests == []


def test_a_bundled_model_needs_neither_folder_nor_hub(hub, reach, monkeypatch, tmp_path):
    monkeypatch.setenv("SCEMAE_WEIGHTS_DIR", str(tmp_path))
    assert folder_of("scemae-tiny", **reach) == TINY
    assert hub.requests == []


def test_the_folder_of_the_environment_comes_before_cache_and_hub(hub, reach, monkeypatch, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "mirror" / NAME)
    monkeypatch.setenv("SCEMAE_WEIGHTS_DIR", str(tmp_path / "mirror"))
    assert folder_of(NAME, **reach) == folder
    assert hub.requests == []
    (folder / WEIGHTS).write_bytes(FILES[WEIGHTS][:-1])
    refused(WeightsIntegrityError, "in SCEMAE_WEIGHTS_DIR", **reach)
    shutil.rmtree(folder)
    assert folder_of(NAME, **reach).is_relative_to(reach["cache_dir"])


def test_a_name_stays_what_was_released_when_main_moves(hub, reach, model):
    card = FILES[CARD].decode().replace("# scemae-tiny", "# Another one").encode()
    moved = hub.add(REPO, {CARD: card})
    assert scemae.load_model(NAME, **reach).id == model.id
    assert folder_of(f"hf-hub:{REPO}", **reach).name == moved
    released = zoo.RELEASED[NAME].revision
    assert folder_of(f"hf-hub:{REPO}@{released}", **reach).name == released


def test_a_branch_is_asked_for_again_and_a_commit_is_not(hub, reach):
    first = folder_of(f"hf-hub:{REPO}", **reach)
    second = hub.add(REPO, {"notes.json": b"{}"})
    assert folder_of(f"hf-hub:{REPO}@main", **reach).name == second != first.name
    hub.requests.clear()
    folder_of(f"hf-hub:{REPO}@{first.name}", **reach)
    assert hub.requests == []
    assert folder_of(f"hf-hub:{REPO}", **reach, local_files_only=True).name == second


def test_info_of_released_models_makes_no_request(hub, reach, monkeypatch):
    monkeypatch.setattr(zoo, "packaged_folder", lambda name: TINY)
    row = scemae.model_info(NAME, **reach)
    assert (row.bundled, row.repo, len(row.revision)) == (False, REPO, 40)
    assert len(scemae.list_models()) == 2
    assert hub.requests == []
    assert scemae.model_info(f"hf-hub:{REPO}", **reach).files[WEIGHTS] == len(FILES[WEIGHTS])


def test_a_name_that_is_not_published_says_so(hub, reach, monkeypatch):
    monkeypatch.setitem(zoo.RELEASED, NAME, replace(zoo.RELEASED[NAME], revision=None))
    refused(WeightsUnavailableError, "not published yet", "SCEMAE_WEIGHTS_DIR", "load_model()", **reach)
    assert hub.requests == []


NO_REPOSITORIES = [
    "",
    "name",
    "a/b/c",
    "a/b@",
    "a/b@c@d",
    "me/m.git",
    "../x",
    "-m/x",
    "me/-m",
    "me/a..b",
    "me/m" + 96 * "m",
]
NO_REVISIONS = ["../../../x", "/abs/path", "a/../b", "a//b", "a/.", "..", "-b", "a\\b", "a\nb", "\x1b[31m", 201 * "v"]


@pytest.mark.parametrize("name", NO_REPOSITORIES + [f"a/b@{revision}" for revision in NO_REVISIONS], ids="C2 {}".format)
def test_what_names_no_repository(hub, reach, outside, name):
    """Faults C2 and D: the client makes paths of names and revisions, and errors of its own."""
    refused(OptionError, "wanted 'hf-hub:ORG/REPO[@REVISION]'", source=f"hf-hub:{name}", **reach)
    assert hub.requests == []
    assert not reach["cache_dir"].exists()


@pytest.mark.parametrize("revision", ["v1.0", "feature/new-head", "refs/pr/1", "v1.0+cpu", "_x"])
def test_what_names_a_revision(hub, reach, revision):
    hub.repos[REPO].tags[revision] = zoo.RELEASED[NAME].revision
    assert folder_of(f"hf-hub:{REPO}@{revision}", **reach).name == zoo.RELEASED[NAME].revision


def test_an_unknown_keyword_is_no_option_of_the_hub():
    for call in (scemae.load_model, scemae.model_info, scemae.LandmarkRegressor.load):
        with pytest.raises(TypeError, match="'chache_dir'"):
            call("scemae-tiny", chache_dir="x")


def test_the_bare_name_of_a_repository_is_no_model():
    refused(ModelNotFoundError, "hf-hub:ORG/REPO", source="org/repo")


# ---- nobody there


def test_unreachable(tmp_path, hub, no_pauses):
    reach = {"endpoint": f"http://127.0.0.1:{unused_port()}", "cache_dir": tmp_path}
    what = (reach["endpoint"], REPO, zoo.RELEASED[NAME].revision, WEIGHTS)
    ways = ("To fix this", f"scemae download {NAME} --to DIR", "SCEMAE_WEIGHTS_DIR=DIR", "load_model()")
    error = refused(WeightsUnavailableError, *what, *ways, **reach)
    assert error.__cause__ is not None
    refused(WeightsUnavailableError, "load 'local-dir:DIR/repo'", source="hf-hub:org/repo", **reach)


@pytest.mark.parametrize("connects", [False, True])
def test_a_host_that_never_answers(tmp_path, hub, no_pauses, connects):
    """Packets vanish, at each of the addresses of the host; or it accepts a connection and then says nothing."""
    with ExitStack() as servers:
        server = servers.enter_context(socket.create_server(("127.0.0.1", 0), backlog=64 if connects else 0))
        port = server.getsockname()[1]
        with suppress(OSError):  # a machine without IPv6
            family = socket.AF_INET6
            servers.enter_context(socket.create_server(("::1", port), family=family, backlog=64 if connects else 0))
        if not connects:  # fill the backlogs
            for host in ("127.0.0.1", "::1"):
                with suppress(OSError):
                    servers.enter_context(socket.create_connection((host, port)))
        reach = {"endpoint": f"http://localhost:{port}", "cache_dir": tmp_path}
        refused(WeightsUnavailableError, "no answer within 0.2 s (HF_HUB_ETAG_TIMEOUT)", **reach)


def test_offline_and_not_cached(hub, reach, monkeypatch):
    words = ("this is offline (HF_HUB_OFFLINE or local_files_only)", "To fix this", REPO)
    refused(WeightsUnavailableError, *words, **reach, local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(WeightsUnavailableError, *words, **reach)
    assert hub.requests == []


def test_a_server_that_fails_once(hub, reach, model, no_pauses):
    hub.trouble = failing(503, times=1)
    assert scemae.load_model(NAME, **reach).id == model.id


def test_a_server_that_fails(hub, reach, no_pauses):
    hub.trouble = failing(503)
    refused(WeightsUnavailableError, "503", "To fix this", **reach)


def test_a_server_that_fails_where_an_older_copy_is_cached(hub, reach, model, caplog, no_pauses):
    scemae.load_model(f"hf-hub:{REPO}", **reach)
    hub.trouble = failing(503)
    with caplog.at_level(logging.WARNING, "scemae"):
        assert scemae.load_model(f"hf-hub:{REPO}", **reach).id == model.id
    assert f"Using the cached {CARD} of {hub.url}/{REPO} at revision main" in caplog.text


# ---- somebody says no


@pytest.mark.parametrize("source", [NAME, f"hf-hub:{REPO}"])
def test_403_gated(hub, reach, source):
    hub.repos[REPO].gated = True
    refused(GatedWeightsError, f"{hub.url}/{REPO}", "agree", "HF_TOKEN", source=source, **reach)
    assert folder_of(source, **reach, token=hub.token)


def test_401(hub, reach):
    refused(GatedWeightsError, "does not accept this token", f"{hub.url}/{REPO}", **reach, token="hf_wrong")
    hub.repos[REPO].private = True
    refused(GatedWeightsError, "private, or does not exist", **reach)
    assert folder_of(NAME, **reach, token=hub.token)


def test_403_of_a_proxy_is_not_that_of_a_gate(hub, reach):
    hub.trouble = failing(403)
    refused(WeightsUnavailableError, "403", "proxy", **reach)


def test_404(hub, reach):
    source = "hf-hub:scemae/scemae-othre"
    refused(ModelNotFoundError, "no such repository", "'scemae/scemae-othre'", source=source, token=hub.token, **reach)
    hub.add("me/empty", {"a.txt": b""})
    refused(ModelNotFoundError, f"has no {CARD}", "scemae push", source="hf-hub:me/empty", **reach)


def test_renamed(hub, reach, model):
    hub.repos["scemae/renamed"] = hub.repos.pop(REPO)
    hub.moved[REPO] = "scemae/renamed"
    assert scemae.load_model(NAME, **reach).id == model.id


@pytest.mark.parametrize("revision", ["v9", "0123abc", "0" * 40])
def test_wrong_revision(reach, revision):
    words = (f"at revision {revision}", "no such revision", "full 40-hex commit")
    refused(RevisionNotFoundError, *words, source=f"hf-hub:{REPO}@{revision}", **reach)


# ---- what comes is not what was asked for


@pytest.mark.parametrize("source", [NAME, f"hf-hub:{REPO}"])
@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_same_size_but_tampered(hub, reach, source, name):
    hub.trouble = altered(name, lambda body: bytes([body[0] ^ 1]) + body[1:])
    refused(WeightsIntegrityError, "SHA-256 is", "expected", "fetched twice", source=source, **reach)
    assert hub.count("GET", name) == 2
    assert name not in [path.name for path in reach["cache_dir"].rglob("*")]
    assert not [path for path in cached(reach) if len(path.read_bytes()) == len(FILES[name])]


def test_tampered_once(hub, reach, model):
    hub.trouble = altered(WEIGHTS, lambda body: body[:-1] + b"?", times=1)
    assert scemae.load_model(NAME, **reach).id == model.id


def test_truncated_on_the_server(hub, reach, monkeypatch):
    release = zoo.RELEASED[NAME]
    revision = hub.add(REPO, {WEIGHTS: FILES[WEIGHTS][:-1000]})
    monkeypatch.setitem(zoo.RELEASED, NAME, replace(release, revision=revision))
    refused(WeightsIntegrityError, "fetched twice", **reach)
    assert not (reach["cache_dir"] / WEIGHTS).exists()


def test_truncated_on_the_way(hub, reach):
    hub.trouble = altered(WEIGHTS, lambda body: body[: len(body) // 2])
    refused(WeightsUnavailableError, "To fix this", **reach)


def test_a_connection_that_always_breaks(hub, reach, no_pauses):
    hub.trouble = cut(WEIGHTS)
    error = refused(WeightsUnavailableError, WEIGHTS, "To fix this", **reach)
    assert error.__cause__ is not None
    assert 1 <= hub.count("GET", WEIGHTS) <= 6
    assert cached(reach) == []


def test_a_connection_that_breaks_once(hub, reach, no_pauses):
    hub.trouble = cut(WEIGHTS, times=1)
    try:
        folder = folder_of(NAME, **reach)
    except WeightsUnavailableError:  # huggingface_hub before 1.0 does not try again
        folder = folder_of(NAME, **reach)
    assert (folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_proxys_page_in_the_place_of_a_hub(hub, reach):
    hub.trouble = page(("HEAD", "GET"))
    refused(WeightsUnavailableError, "what answers is not a Hub", "login page", "To fix this", **reach)


def test_a_proxys_page_in_the_place_of_a_file(hub, reach):
    hub.trouble = page(("GET",))
    refused(WeightsUnavailableError, "Consistency check failed", "To fix this", **reach)
    assert cached(reach) == []


def test_a_proxys_page_of_just_the_size_of_a_file(hub, reach):
    hub.trouble = altered(CONFIG, lambda body: b"<html>".ljust(len(body)))
    refused(WeightsIntegrityError, CONFIG, "proxy", **reach)


def test_a_tampered_card_does_not_stay(hub, reach, model):
    source = f"hf-hub:{REPO}@{zoo.RELEASED[NAME].revision}"
    stated = zoo.RELEASED[NAME].sha256[WEIGHTS].encode()
    hub.trouble = altered(CARD, lambda body: body.replace(stated, stated[::-1]), times=1)
    refused(WeightsIntegrityError, "fetched twice", source=source, **reach)
    assert scemae.load_model(source, **reach).id == model.id


def test_a_card_that_vouches_for_nothing(hub, reach):
    hub.add("me/other", {**FILES, CARD: b"# A model of another library\n"})
    words = ("can be checked", "nothing", "scemae push")
    refused(IncompatibleWeightsError, *words, source="hf-hub:me/other", **reach)


# ---- somebody hostile


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize(
    ("header", "value", "words"),
    [
        pytest.param("ETag", "{outside}/key", "its ETag is ", id="C1 ETag of a file"),
        pytest.param("ETag", "{outside}/new", "its ETag is ", id="C1 ETag of a new file"),
        pytest.param("ETag", "../../../outside/key", "its ETag is ", id="C1 ETag of a relative path"),
        pytest.param("X_Linked_Etag", '"{outside}/key"', "its ETag is ", id="C1 ETag of a linked file"),
        pytest.param("ETag", "0123456789", "wanted 40 or 64 hexadecimal digits", id="C1 ETag of other length"),
        pytest.param("X_Repo_Commit", "../../../outside", "its commit is ", id="C1 commit of a relative path"),
        pytest.param("X_Repo_Commit", "{outside}", "its commit is ", id="C1 commit of a folder"),
        pytest.param("X_Repo_Commit", 40 * "0", "wanted the one asked for", id="C1 commit of another"),
    ],
)
def test_an_endpoint_that_would_choose_paths(hub, reach, outside, header, value, words, skip):
    """Faults C1: the client makes paths of an answer's ETag and commit; of the first answer, or of a later one."""
    hub.trouble = lying(skip, **{header: value.format(outside=outside)})
    source = f"hf-hub:{REPO}@{zoo.RELEASED[NAME].revision}"
    refused(WeightsUnavailableError, "what comes is refused", words, source=source, **reach)


def test_what_was_checked_is_what_the_client_uses(hub, reach, outside):
    """Faults C1: a second request for an ETag could be answered with another one."""
    hub.trouble = lying(3, ETag=str(outside / "key"))
    assert folder_of(f"hf-hub:{REPO}", **reach)
    assert (hub.count("HEAD"), hub.count("GET")) == (3, 3)


def test_an_endpoint_without_a_file_that_would_choose_paths(hub, reach, outside):
    """Faults C1: the client notes which files a commit has not, at a path made of the commit."""
    hub.add("me/empty", {"a.txt": b""})
    hub.trouble = lying(X_Repo_Commit=str(outside / "new"))
    refused(ModelNotFoundError, f"has no {CARD}", source="hf-hub:me/empty", **reach)


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        pytest.param(lying(Content_Length=str(1 << 40)), "bytes there, and may have", id="C7 length of a terabyte"),
        pytest.param(endless(b"x" * 65_536), "more than 1,048,576 bytes come", id="C7 length without an end"),
        pytest.param(
            endless(gzip.compress(bytes(1 << 20)), Content_Encoding="gzip"),
            "comes compressed",
            id="C7 encoding a bomb",
        ),
        pytest.param(endless(b"x", 0.05), "not here after", id="C7 a byte now and then"),
        pytest.param(endless(b"x", 0.05, Content_Length="9999"), "not here after", id="C7 a byte of many now and then"),
    ],
)
def test_an_endpoint_that_would_fill_the_disk_or_never_end(hub, reach, outside, monkeypatch, trouble, words):
    """Faults C7."""
    monkeypatch.setattr(endpoint_guard, "PATIENCE", 0.3)
    monkeypatch.setattr(endpoint_guard, "SLOWEST", 1e7)
    hub.trouble = trouble
    refused(WeightsUnavailableError, words, source=f"hf-hub:{REPO}", **reach)
    assert sum(path.stat().st_size for path in reach["cache_dir"].rglob("*") if path.is_file()) <= 1 << 20


@pytest.mark.parametrize("location", ["file://{outside}/key", "/again", "{hub}/again"], ids="C7 redirection {}".format)
def test_redirections_that_lead_nowhere(hub, reach, outside, no_pauses, location):
    """Faults C7, and a file of this machine."""
    headers = {"ETag": f'"{40 * "0"}"', "X_Repo_Commit": zoo.RELEASED[NAME].revision}
    headers["Location"] = location.format(outside=outside, hub=hub.url)
    hub.trouble = lambda request: request.send(b"private", 302, **headers) is None
    refused(WeightsUnavailableError, "cannot be fetched", source=f"hf-hub:{REPO}", **reach)
    assert len(hub.requests) <= endpoint_guard.ANSWERS + 1
    assert cached(reach) == []


def test_a_server_that_starts_again_for_ever(hub, reach, outside, no_pauses):
    """Faults C7: the client starts again without end where each answer breaks after more than 10 MB."""
    hub.trouble = cut(WEIGHTS, at=0.999)
    refused(WeightsUnavailableError, WEIGHTS, **reach)
    assert hub.count("GET", WEIGHTS) <= endpoint_guard.TRIES + 1


@pytest.mark.parametrize("source", [NAME, f"hf-hub:{REPO}"])
def test_weights_larger_than_stated(hub, reach, outside, monkeypatch, source):
    """Faults C7: the release, or the card, states the size."""
    revision = hub.add(REPO, {WEIGHTS: FILES[WEIGHTS] + b"?"})
    monkeypatch.setitem(zoo.RELEASED, NAME, replace(zoo.RELEASED[NAME], revision=revision))
    size = len(FILES[WEIGHTS])
    refused(WeightsUnavailableError, f"it has {size + 1:,} bytes there, and may have {size:,}", source=source, **reach)
    assert hub.count("GET", WEIGHTS) == 0


@pytest.mark.parametrize("path", ["../../../../outside/key", "{outside}/key", "../key"], ids="card path {}".format)
def test_a_card_that_names_files_elsewhere(hub, reach, outside, path):
    card = FILES[CARD].decode().replace(f"| {CONFIG} ", f"| {path.format(outside=outside)} ").encode()
    hub.add(REPO, {CARD: card})
    refused(WeightsIntegrityError, "wanted one each", source=f"hf-hub:{REPO}", **reach)


def test_only_files_of_the_cache_are_removed(hub, reach, outside, model):
    """Faults C1: links of the cache that lead elsewhere, as a hostile endpoint could make them with scemae 0.1.0."""
    path = folder_of(NAME, **reach) / WEIGHTS
    path.unlink()
    path.symlink_to(outside / "key")
    assert scemae.load_model(NAME, **reach).id == model.id
    assert not (path.readlink()).is_absolute()


def test_a_password_is_not_shown(hub, reach, outside, caplog, no_pauses, monkeypatch):
    """Faults C5: in errors, their causes and logs; it reaches the server as before."""
    asked = []

    def proxy(request):
        asked.append(request.headers.get("Authorization"))
        del request.headers["Authorization"]
        return request.path.endswith(WEIGHTS) and request.command == "GET" and request.send(b"", 503) is None

    endpoint = hub.url.replace("//", "//me:pass%40word@")
    hub.trouble = proxy
    with caplog.at_level(logging.DEBUG):
        error = refused(WeightsUnavailableError, hub.url, **{**reach, "endpoint": endpoint})
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)  # what HF_ENDPOINT does
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        refused(WeightsUnavailableError, hub.url, **{**reach, "endpoint": None})
    hub.close()
    refused(WeightsUnavailableError, hub.url, source="hf-hub:a/b", **{**reach, "endpoint": endpoint})
    assert set(asked) == {"Basic " + base64.b64encode(b"me:pass@word").decode()}
    assert "me:pass" not in caplog.text
    while error:
        assert "me:pass" not in str(error)
        error = error.__cause__ or error.__context__
    refused(OptionError, "is not a URL", source="hf-hub:a/b", endpoint="http://me:pass@[::1")


def test_a_token_is_not_shown(hub, reach, outside):
    """Faults C5: the client's error for a token with a line break shows it."""
    assert "secret" not in str(refused(OptionError, "token has a space", **reach, token="hf_secret\n"))


# ---- the cache


def test_a_damaged_copy_in_the_cache_is_fetched_again(hub, reach, model):
    scemae.load_model(NAME, **reach)
    blob(reach, FILES[WEIGHTS]).write_bytes(FILES[WEIGHTS][:-1])
    refused(WeightsIntegrityError, "Go online", **reach, local_files_only=True)
    assert scemae.load_model(NAME, **reach).id == model.id
    assert hub.count("GET", WEIGHTS) == 2


@pytest.mark.filterwarnings("ignore:.*symlinks")
def test_a_file_system_without_links(hub, reach, model, monkeypatch):
    def no_links(*_):
        raise OSError(1314, "a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", no_links)
    assert scemae.load_model(NAME, **reach).id == model.id
    path = folder_of(NAME, **reach) / WEIGHTS
    assert not path.is_symlink()
    path.write_bytes(FILES[WEIGHTS][:-1])
    assert scemae.load_model(NAME, **reach).id == model.id


def test_disk_full(hub, reach, monkeypatch):
    opened = Path.open

    def full(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        if path.name.endswith(".incomplete"):
            file.close()
            return open("/dev/full", "wb", buffering=0)
        return file

    monkeypatch.setattr(Path, "open", full)
    error = refused(WeightsUnavailableError, "no space left", "make room", "cache_dir", **reach)
    assert error.__cause__.errno == ENOSPC
    assert cached(reach) == []


def without_privileges(*command):
    """A command that the permissions of files hold for, even if these tests run as root."""
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root may write everywhere, and there is no setpriv to give that up")
        return ["setpriv", "--bounding-set=-dac_override", *command]
    return list(command)


@pytest.mark.slow
def test_read_only_cache(hub, reach, environment):
    fetching = without_privileges(*command("download", f"hf-hub:{REPO}"))
    cache = reach["cache_dir"]
    cache.mkdir(mode=0o555)
    done = subprocess.run(fetching, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "cache_dir= (HF_HUB_CACHE)" in done.stderr
    cache.chmod(0o755)
    revision = folder_of(f"hf-hub:{REPO}", **reach).name
    for path in [cache, *cache.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    fetching[-1] += f"@{revision}"
    done = subprocess.run(fetching, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes_at_once_fetch_once(hub, environment):
    hub.trouble = slow(WEIGHTS, 0.5)
    both = [
        subprocess.Popen(command("download", f"hf-hub:{REPO}"), env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    folders = {process.communicate(timeout=20)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(folders) == 1
    assert hub.count("GET", WEIGHTS) == 1


def test_eight_threads_at_once_fetch_once(hub, reach):
    hub.trouble = slow(WEIGHTS, 0.3)
    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: folder_of(NAME, **reach), range(8)))
    assert len(folders) == 1
    assert hub.count("GET", WEIGHTS) == 1


@pytest.mark.slow
def test_killed_in_the_middle(hub, reach, environment, model):
    hub.trouble = slow(WEIGHTS, 30)
    process = subprocess.Popen(command("download", f"hf-hub:{REPO}"), env=environment)
    waited = time.monotonic() + 20
    while not hub.count("GET", WEIGHTS):
        assert time.monotonic() < waited
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    hub.trouble = lambda request: False
    refused(WeightsUnavailableError, source=f"hf-hub:{REPO}", **reach, local_files_only=True)
    assert scemae.load_model(f"hf-hub:{REPO}", **reach).id == model.id
