"""The Hub through the real client: what resolves to what, and all that may go wrong on the way."""

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
from fakehub import altered, cut, failing, page, slow

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
from scemae.weights import zoo
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


@pytest.mark.parametrize("source", ["hf-hub:", "hf-hub:name", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:a/b@c@d"])
def test_what_names_no_repository(source):
    refused(OptionError, "wanted 'hf-hub:ORG/REPO[@REVISION]'", source=source)


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
