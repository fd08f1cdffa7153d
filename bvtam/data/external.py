"""Deprecated: `bvtam.data.hub_datasets` is the name of this module since 0.2; it goes in 0.4."""

import warnings

from .hub_datasets import from_hub_dataset as from_hub_dataset
from .hub_datasets import webdataset_clips as webdataset_clips

warnings.warn(
    'bvtam.data.external is bvtam.data.hub_datasets now', DeprecationWarning, stacklevel=2
)
