"""Annotated faces of the field's data sets: where each picture lies, the box that is the protocol's crop, landmarks.

One table, `LAYOUTS`, says for each data set what its splits are, where its files come from, and how its framing follows
the protocol of DVE, CL and the paper (Sec. 4), or does not.
"""

from scemae.training.datasets.checking import Report, add_data_check, check
from scemae.training.datasets.reading import LAYOUTS, Layout, read_dataset
from scemae.training.datasets.sample import FaceDataset, Sample

__all__ = ["LAYOUTS", "FaceDataset", "Layout", "Report", "Sample", "add_data_check", "check", "read_dataset"]
