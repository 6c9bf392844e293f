import os
import tempfile

# Read once, when huggingface_hub is imported. Nothing of the user's, nothing of the real Hub, is for tests.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HOME"] = os.path.join(tempfile.gettempdir(), "scemae-tests-no-such-folder")
os.environ["HF_TOKEN"] = ""
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["SCEMAE_WEIGHTS_DIR"] = ""
# Read once, when torch is imported. Processes that fight for the cores are slower than one.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))

import socket
from dataclasses import replace

import numpy as np
import pytest
from fakehub import FakeHub

import scemae
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.samples import sample_faces
from scemae.weights.card import model_card
from scemae.weights.model_folder import CARD, WEIGHTS, file_sha256, save_model


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Only the loopback interface, and other processes of this machine, can be reached."""
    connect = socket.socket.connect

    def refuse(self, address, *rest):
        local = self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1")
        assert local, f"a test tried to reach {address}"
        return connect(self, address, *rest)

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def hub(monkeypatch):
    """An empty Hub on the loopback interface."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture
def reach(hub, tmp_path):
    """How to reach that Hub, with an empty cache."""
    return {"endpoint": hub.url, "cache_dir": tmp_path / "cache"}


@pytest.fixture(scope="session")
def model():
    return scemae.load_model()


@pytest.fixture(scope="session")
def aligning_in(model, tmp_path_factory):
    """Folder of the same model that aligns in so many steps: exports take as long as their graphs are large.

    `architecture`: one of fewer blocks, to have only the first of the encoder's.
    """

    from scemae.model.sce_mae import SceMae  # here, as below: the process that starts the others needs no torch

    def folder_of(count, architecture=model.config.architecture):
        folder = tmp_path_factory.mktemp("model") / "short"
        aligner = replace(model.config.aligner, steps=count)
        config = replace(model.config, aligner=aligner, architecture=architecture)
        wanted = SceMae(config).state_dict()
        save_model(folder, {name: tensor for name, tensor in model.state_dict().items() if name in wanted}, config, "")
        weights = folder / WEIGHTS
        (folder / CARD).write_text(model_card(config, file_sha256(weights), weights.stat().st_size))
        return folder

    return folder_of


@pytest.fixture(scope="session")
def two_block_folder(aligning_in):
    """Folder of the released model's first two blocks, aligning in one step: for tests that are not about weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "test-two-blocks", replace(BACKBONES["deit-tiny"], depth=2))
        yield aligning_in(1, architecture="test-two-blocks")


@pytest.fixture(scope="session")
def two_block_model(two_block_folder):
    return scemae.load_model(two_block_folder)


@pytest.fixture(scope="session")
def samples():
    return sample_faces()


@pytest.fixture(scope="session")
def faces(model, samples):
    """Features of the two sample faces."""
    return scemae.extract_features(model, [s.path for s in samples], boxes=[s.box for s in samples])


@pytest.fixture(scope="session")
def landmarks(samples):
    """(2, 8, 2) landmarks of the two sample faces."""
    return np.array([list(s.landmarks.values()) for s in samples], dtype=float)


@pytest.fixture(autouse=True)
def seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone(monkeypatch):
    """The name of an architecture that trains in no time."""
    monkeypatch.setitem(BACKBONES, "test-tiny", BackboneConfig(width=32, heads=2, depth=2, params=0))
    return "test-tiny"
