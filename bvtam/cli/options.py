"""Options that several commands have."""

from __future__ import annotations

from typing import Annotated, Literal

from typer import Argument, Option

from ..data.list_formats import FORMATS

_NAME = 'ARCH, ARCH.TAG, local-dir:PATH, hf-hub:REPO, or the folder of a run.'
Model = Annotated[str, Option(help=_NAME)]
ModelName = Annotated[str, Argument(metavar='MODEL', help=_NAME)]
Clips = Annotated[int | None, Option(help="Clips of a video (default: the model's).")]
Crops = Annotated[int | None, Option(help="Crops of a clip: 1, 3, 5 or 10 (default: the model's).")]
BatchSize = Annotated[
    int, Option(help='Clips that go through the model together, each view as one.')
]
Threads = Annotated[int, Option('--workers', help='Threads that decode.')]
Json = Annotated[bool, Option('--json', help='Print one JSON document instead of a table.')]
OnError = Annotated[
    Literal['skip', 'raise'],
    Option(help='A video that cannot be read is skipped and counted, or stops all.'),
]
MaxFailed = Annotated[
    float, Option(help='Share of the videos, 0 to 1, that may fail before all stops.')
]
TimeLimit = Annotated[
    float, Option(help='Seconds without progress after which a video has failed.')
]
Precision = Annotated[
    Literal['fp32', 'bf16'],
    Option(help='Of the model; bf16 is faster where the processor has it, and less exact.'),
]
LISTS = f'a list ({", ".join(form.name for form in FORMATS)})'
Root = Annotated[
    str, Option(help='Where the paths in a list start (default: the folder of the list).')
]
AllowUrls = Annotated[
    bool, Option('--allow-urls', help='Let a list name addresses of videos, not files alone.')
]
Protocols = Annotated[
    str, Option(help='Of URLs that may be opened, also by redirects and playlists.')
]
Frames = Annotated[
    str,
    Option(
        metavar='NAMES',
        help='Of folders of images, the names of the frames, as in `img_{:05d}.jpg` or `img_*.jpg` '
        '(default: all that are numbered).',
    ),
]
_RATE = 'Frames a second of folders of images (default: 25); a video file has times of its own.'
FrameRate = Annotated[float | None, Option('--frame-rate', '--fps', help=_RATE)]
FolderRate = Annotated[float | None, Option('--frame-rate', help=_RATE)]  # --fps is another
