"""The field's annotated datasets: for each face its image, the box that is the protocol's crop, and its landmarks.

The table `DATASETS` gives the splits of each dataset, where its files come from, and how its crop follows the protocol
of DVE, CL and the paper (Sec. 4) or differs from it.
"""

from scemae.datasets.annotated_face import FaceDataset, Sample
from scemae.datasets.catalog import DATASETS, DatasetSpec, read_dataset
from scemae.datasets.check import DatasetReport, check_dataset

__all__ = ["DATASETS", "DatasetReport", "DatasetSpec", "FaceDataset", "Sample", "check_dataset", "read_dataset"]
