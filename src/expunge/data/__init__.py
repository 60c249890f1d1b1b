"""Data: files, arrays and data sets of many kinds, read into `Samples`."""

from expunge.data.arrays import Labels, from_arrays
from expunge.data.data_config import DataConfig, LabelFile
from expunge.data.dataset import DataLike, MapDataset, as_samples, from_dataset
from expunge.data.inputs import Batch, DictInputs, Inputs, TensorInputs, require_tensor
from expunge.data.lazy_inputs import LazyInputs
from expunge.data.overlap import check_alike, check_disjoint, shared_inputs
from expunge.data.preparation import Preparation
from expunge.data.samples import Samples, View
from expunge.data.sources import read
from expunge.data.splitting import hold_out
from expunge.data.text_samples import from_texts
from expunge.data.views import view

__all__ = [
    "Batch",
    "DataConfig",
    "DataLike",
    "DictInputs",
    "Inputs",
    "LabelFile",
    "Labels",
    "LazyInputs",
    "MapDataset",
    "Preparation",
    "Samples",
    "TensorInputs",
    "View",
    "as_samples",
    "check_alike",
    "check_disjoint",
    "from_arrays",
    "from_dataset",
    "from_texts",
    "hold_out",
    "read",
    "require_tensor",
    "shared_inputs",
    "view",
]
