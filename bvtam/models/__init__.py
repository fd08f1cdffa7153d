"""The networks. Importing this package puts every name in timm's registry."""

from .bl_resnet import *  # noqa: F403
from .bl_resnet import BLResNet
from .blvnet import *  # noqa: F403
from .blvnet import BLVNet
from .temporal_resnet import *  # noqa: F403
from .temporal_resnet import TemporalNet, temporal_model
