"""Every registered model for `torch.hub.load(REPO, name, pretrained=..., **options)`."""

dependencies = [
    'torch',
    'torchvision',
    'timm',
    'safetensors',
    'huggingface_hub',
    'filelock',
    'numpy',
]

from timm.models import model_entrypoint as _entrypoint  # noqa: E402

from bvtam import list_models as _list_models  # noqa: E402

globals().update({_name: _entrypoint(_name) for _name in _list_models()})
