"""Data: files, arrays and data sets of many kinds, read into `Samples`."""

from expunge.data.arrays import from_arrays
from expunge.data.dataset import DataLike, MapDataset, as_samples, from_dataset
from expunge.data.overlap import check_alike, check_disjoint, shared_inputs
from expunge.data.samples import Samples
from expunge.data.sources import DataConfig, LabelFile, read
from expunge.data.views import view

__all__ = [
    "DataConfig",
    "DataLike",
    "LabelFile",
    "MapDataset",
    "Samples",
    "as_samples",
    "check_alike",
    "check_disjoint",
    "from_arrays",
    "from_dataset",
    "read",
    "shared_inputs",
    "view",
]
