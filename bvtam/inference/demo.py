"""A page to try a network on: drop or record a video, see what is named, when and where."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from ..data.video import open_video
from ..errors import BvtamError
from .evidence import evidence, save_evidence
from .predict import Classifier, model_name, predict
from .render import save_timeline
from .windows import windows

if TYPE_CHECKING:
    from gradio import Blocks

SAMPLE = Path(__file__).parents[1] / 'assets' / 'sample.mp4'
_WINDOWS, _SHORTEST = 12, 0.5  # of the timeline, in seconds


def build(model: nn.Module) -> Blocks:
    """The page, to `launch()`.

    Args:
        model: a video net of the zoo with weights.

    Raises:
        BvtamError: no gradio, or as from `predict`.
    """
    try:
        import gradio
    except ImportError:
        raise BvtamError("the demo needs gradio: pip install 'bvtam[demo]'") from None
    Classifier(model)  # refuses what it cannot use before a page opens

    def answer(path: str | None) -> tuple[Any, ...]:
        if not path:
            return None, None, None
        try:
            return look(model, path)
        except (BvtamError, OSError) as error:
            raise gradio.Error(str(error), print_exception=False) from None

    with gradio.Blocks(title='bvtam', analytics_enabled=False) as page:
        gradio.Markdown(f'# {model_name(model)}\nDrop or record a video, and see what is named.')
        with gradio.Row():
            video = gradio.Video(label='Video', sources=['upload', 'webcam'], elem_id='video')
            label = gradio.Label(label='Prediction', num_top_classes=5, elem_id='prediction')
        gradio.Examples([[str(SAMPLE)]], video, label='A sample')
        where = gradio.Image(label='Where and when the evidence is', elem_id='evidence')
        line = gradio.Image(label='Timeline', elem_id='timeline')
        video.change(answer, video, [label, where, line], api_name='look')
    return page


def look(model: nn.Module, path: str) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Scores by label, the picture of the evidence and that of the timeline."""
    reader = open_video(path, protocols=())  # from whoever opens the page
    every = max(_SHORTEST, reader.duration / _WINDOWS)
    found = predict(model, reader)
    with TemporaryDirectory() as scratch:
        pictures = [Path(scratch) / name for name in ('evidence.png', 'timeline.png')]
        save_evidence(evidence(model, reader), pictures[0])
        save_timeline(windows(model, reader, every, 2 * every), pictures[1])
        images = [Image.open(picture).convert('RGB') for picture in pictures]
    return {entry['label']: entry['score'] for entry in found['top']}, *images
