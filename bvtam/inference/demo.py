"""A page to try a model on: drop or record a video, see what is named, when and where.

Whoever opens it is a stranger: files have a largest size and length, are read without leaving this
machine, and are deleted; few wait at a time; who is not on this machine needs a password.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import nn

from ..data.video.open import open_video
from ..errors import BvtamError
from ..optional import library
from .evidence import evidence, save_evidence
from .predict import Classifier, predict
from .render import save_timeline
from .runner import model_name
from .windows import windows

if TYPE_CHECKING:
    from gradio import Blocks

SAMPLE = Path(__file__).parents[1] / 'assets' / 'sample.mp4'
_WINDOWS, _SHORTEST = 12, 0.5  # of the timeline, in seconds
_LONGEST = 600  # seconds of a video: all of its frames are decoded
_TIME_LIMIT = 20  # seconds without progress
_WAITING = 16  # visitors in the queue, of whom one is served at a time
_KEPT, _SWEEP = 3600, 600  # seconds that uploads are kept, and between looks for old ones
_LARGEST_REQUEST = 1_000_000  # bytes, but for uploads


def build(model: nn.Module) -> Blocks:
    """The page that shows what a video model of the zoo sees, for `launch`.

    Raises:
        BvtamError: no gradio, or as from `predict`.
    """
    gradio = library('gradio', 'demo', 'the demo')
    Classifier(model)  # refuses what it cannot use before a page opens

    def answer(path: str | None) -> tuple[Any, ...]:
        if not path:
            return None, None, None
        try:
            return look(model, path)
        except (BvtamError, OSError, MemoryError) as error:
            message = str(error).replace(f'{Path(path).parent}/', '') or type(error).__name__
            raise gradio.Error(message, print_exception=False) from None

    with gradio.Blocks(
        title='bvtam', analytics_enabled=False, delete_cache=(_SWEEP, _KEPT)
    ) as page:
        gradio.Markdown(f'# {model_name(model)}\nDrop or record a video, and see what is named.')
        with gradio.Row():
            video = gradio.Video(label='Video', sources=['upload', 'webcam'], elem_id='video')
            label = gradio.Label(label='Prediction', num_top_classes=5, elem_id='prediction')
        gradio.Examples([[str(SAMPLE)]], video, label='A sample')
        where = gradio.Image(label='Where and when the evidence is', elem_id='evidence')
        line = gradio.Image(label='Timeline', elem_id='timeline')
        video.change(answer, video, [label, where, line], api_name='look', concurrency_limit=1)
    return page.queue(max_size=_WAITING)


def launch(
    page: Blocks,
    port: int = 7860,
    share: bool = False,
    auth: tuple[str, str] | None = None,
    max_size: int = 200,
) -> tuple[str, str] | None:
    """Serves the page on 127.0.0.1 by threads, until `page.close()`.

    Args:
        share: also through Gradio's servers, to whoever has the address and the password.
        auth: user and password to log in with; a shared page without gets a password of its own.
        max_size: of an upload, in MB.

    Returns:
        `auth`, or what stands for it; None where no login is wanted.

    Raises:
        BvtamError: the port cannot be used, or Gradio's servers cannot be reached.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if share and auth is None:
        auth = ('bvtam', secrets.token_urlsafe(12))
    # Through a name of its own for 127.0.0.1, a foreign page could ask this one in a visitor's browser.
    hosts = ['*'] if share else ['127.0.0.1', 'localhost']
    middleware = [Middleware(TrustedHostMiddleware, allowed_hosts=hosts), Middleware(_UploadsAlone)]
    try:
        page.launch(
            server_name='127.0.0.1',
            server_port=port,
            share=share,
            auth=auth,
            max_file_size=f'{max_size}mb',
            app_kwargs={'middleware': middleware},
            show_error=False,  # those that are no gradio.Error name paths
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise BvtamError(f'port {port} cannot be used: {error}; name another with --port') from None
    if share and not page.share_url:
        page.close(verbose=False)
        raise BvtamError("Gradio's servers cannot be reached: leave out --share, or try again")
    return auth


class _UploadsAlone:
    """ASGI middleware that refuses requests for videos by address, which Gradio would fetch."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (
            scope['type'] != 'http'
            or scope['method'] != 'POST'
            or scope['path'].endswith('/upload')  # which has a limit of its own
        ):
            await self.app(scope, receive, send)
            return
        body, more = b'', True
        while more and len(body) <= _LARGEST_REQUEST:
            message = await receive()
            body += message.get('body', b'')
            more = message.get('more_body', False)
        if more or len(body) > _LARGEST_REQUEST or _names_address(body):
            from starlette.responses import PlainTextResponse

            await PlainTextResponse('upload the video', 403)(scope, receive, send)
            return
        parts = [{'type': 'http.request', 'body': body, 'more_body': False}]

        async def again() -> Any:
            return parts.pop() if parts else await receive()

        await self.app(scope, again, send)


def _names_address(body: bytes) -> bool:
    tables: list[dict] = []
    try:
        json.loads(body, object_hook=lambda table: tables.append(table) or table)
    except (ValueError, RecursionError):
        return False  # a form, or nothing that Gradio takes
    return any('://' in str(table.get('path')) for table in tables)


def look(model: nn.Module, path: str) -> tuple[dict[str, float], Image.Image, Image.Image]:
    """Scores by label, the picture of the evidence and that of the timeline.

    Raises:
        BvtamError: as from `predict`; a video of more than ten minutes.
    """
    reader = open_video(path, _TIME_LIMIT, protocols=())  # from whoever opens the page
    if reader.duration > _LONGEST:
        raise BvtamError(
            f'{Path(path).name} lasts {reader.duration:.0f} s, more than {_LONGEST}: cut it, or use '
            '`bvtam predict`'
        )
    every = max(_SHORTEST, reader.duration / _WINDOWS)
    found = predict(model, reader)
    with TemporaryDirectory() as scratch:
        pictures = [Path(scratch) / name for name in ('evidence.png', 'timeline.png')]
        save_evidence(evidence(model, reader), pictures[0])
        save_timeline(windows(model, reader, every, 2 * every), pictures[1])
        images = [Image.open(picture).convert('RGB') for picture in pictures]
    return {entry['label']: entry['score'] for entry in found['top']}, *images
