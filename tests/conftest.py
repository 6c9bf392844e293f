import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import socket

import numpy as np
import pytest
import torch

import scemae
from scemae.config import BACKBONES, BackboneConfig
from scemae.samples import sample_faces


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    connect = socket.socket.connect

    def refuse(self, address, *rest):
        if self.family == socket.AF_UNIX:  # other processes of this machine
            return connect(self, address, *rest)
        raise AssertionError(f"a test tried to reach {address}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def model():
    return scemae.load_model()


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
    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone(monkeypatch):
    """The name of an architecture that trains in no time."""
    monkeypatch.setitem(BACKBONES, "test-tiny", BackboneConfig(width=32, heads=2, depth=2, params=0))
    return "test-tiny"
