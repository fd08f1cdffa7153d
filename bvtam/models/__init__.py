"""The networks. Importing this package puts every name in timm's registry."""

from .bl_resnet import *  # noqa: F403
from .bl_resnet import BLResNet as BLResNet
from .blvnet import *  # noqa: F403
from .blvnet import BLVNet as BLVNet
from .temporal_resnet import *  # noqa: F403
from .temporal_resnet import TemporalNet as TemporalNet
from .temporal_resnet import temporal_model as temporal_model
