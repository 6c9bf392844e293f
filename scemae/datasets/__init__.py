"""Annotated faces of the field's data sets: where each picture lies, the box that is the protocol's crop, landmarks.

One table, `DATASETS`, says for each data set what its splits are, where its files come from, and how its framing
follows the protocol of DVE, CL and the paper (Sec. 4), or does not.
"""

from scemae.datasets.catalog import DATASETS, DatasetSpec, read_dataset
from scemae.datasets.check import Report, add_data_check, check
from scemae.datasets.sample import FaceDataset, Sample

__all__ = ["DATASETS", "DatasetSpec", "FaceDataset", "Report", "Sample", "add_data_check", "check", "read_dataset"]
