"""Model weights: the released models, model folders and their cards, and the Hugging Face Hub."""

from scemae.weights.download_files import download, verify
from scemae.weights.hub import HubOptions
from scemae.weights.model_folder import VerifiedFiles
from scemae.weights.upload import push
from scemae.weights.zoo import ModelInfo

__all__ = ["HubOptions", "ModelInfo", "VerifiedFiles", "download", "push", "verify"]
