"""Commands that ask a model what videos show: predict and demo."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from threading import Event
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from ..errors import one_line
from . import options
from .shared import app, bar, check_given, load_model, print_json, protocol_list, table


@app.command()
def predict(
    context: typer.Context,
    videos: Annotated[
        list[str],
        Argument(metavar='VIDEO', help='Files, folders, globs, URLs; - for a stream on stdin.'),
    ],
    model: options.Model = 'bvtam_r50_8x2',
    topk: Annotated[int, Option(help='Classes to show; of windows, the table has the first.')] = 5,
    clips: options.Clips = None,
    crops: options.Crops = None,
    every: Annotated[
        float | None,
        Option(help='Answer for windows of the video, one beginning every so many seconds.'),
    ] = None,
    length: Annotated[
        float | None, Option(help='Seconds of a window (default: as --every).')
    ] = None,
    timeline: Annotated[
        Path | None,
        Option(help='Draw the scores of the windows: a .png file, or a folder of them.'),
    ] = None,
    save: Annotated[
        Path | None,
        Option(
            help='Copy the video with the labels drawn on it: a .mp4 or .gif file, or a folder.'
        ),
    ] = None,
    evidence: Annotated[
        Path | None,
        Option(help='Draw where and when the model sees it: a .png file, or a folder of them.'),
    ] = None,
    stream: Annotated[
        bool,
        Option(
            '--stream', help='Answer while one video comes: a file, a pipe, a URL, /dev/video0.'
        ),
    ] = False,
    fps: Annotated[
        float | None,
        Option(help='Frames a second that --stream looks at (default: all); else as --frame-rate.'),
    ] = None,
    last: Annotated[
        int | None, Option(help='Steps that an answer of --stream is of (default: all so far).')
    ] = None,
    events: Annotated[
        bool, Option('--events', help='Of --stream: say each gesture once, when it has ended.')
    ] = False,
    threshold: Annotated[
        float, Option(help='Probability from which on --events says a gesture.')
    ] = 0.5,
    hold: Annotated[
        float, Option(help='Seconds without motion after which --events takes one to have ended.')
    ] = 0.4,
    quiet: Annotated[
        list[str] | None,
        Option(
            metavar='LABEL',
            help='A class that --events never says, beside quiet, none, background ...; repeatable.',
        ),
    ] = None,
    batch_size: options.BatchSize = 8,
    workers: options.Threads = 4,
    precision: options.Precision = 'fp32',
    runtime: Annotated[
        Literal['torch', 'onnx', 'openvino'],
        Option(help='What runs the model; --model is a file from `export` then.'),
    ] = 'torch',
    on_error: options.OnError = 'raise',
    max_failed: options.MaxFailed = 0.1,
    errors: Annotated[
        Path | None, Option(help='CSV file to list the videos in that were skipped.')
    ] = None,
    frames: options.Frames = '',
    frame_rate: options.FolderRate = None,
    time_limit: options.TimeLimit = 60.0,
    protocols: options.Protocols = 'http,https,rtsp',
    as_json: Annotated[
        bool,
        Option(
            '--json',
            help='Print one JSON document; with --stream, one a line; of --events, JSON lines.',
        ),
    ] = False,
) -> None:
    """Name what videos show: the likeliest classes and their scores."""
    from ..data.failures import Failures
    from ..data.records import find_videos
    from ..data.video.addresses import is_url
    from ..data.video.folders import check_frames
    from ..data.video.open import open_video
    from ..data.video.reader import VideoError
    from ..inference.evidence import evidence as find_evidence
    from ..inference.evidence import save_evidence
    from ..inference.predict import predict_many
    from ..inference.render import SUFFIXES, save_annotated, save_timeline
    from ..inference.windows import windows_many

    suffix = {'torch': '', 'onnx': '.onnx', 'openvino': '.xml'}[runtime]
    if not model.endswith(suffix):
        raise typer.BadParameter(
            f'--runtime {runtime} needs --model FILE{suffix}, which `bvtam export NAME FILE{suffix}` writes'
        )
    both = {'videos', 'model', 'topk', 'precision', 'time_limit', 'protocols', 'as_json'}
    both |= {'fps', 'frames', 'frame_rate'}
    of_events = {'events', 'threshold', 'hold', 'quiet'}
    check_given(context, stream, {'stream', 'last'} | of_events, both, '--stream')
    if stream:
        check_given(context, events, of_events, (both - {'topk'}) | {'stream'}, '--events')
    reading = {'time_limit': time_limit, 'protocols': protocol_list(protocols)}
    if stream:
        if len(videos) > 1:
            raise typer.BadParameter('--stream is of one video')
        from ..inference.events import events as find_events
        from ..inference.events import quiet_labels
        from ..inference.stream import predict_stream

        loaded = load_model(model, precision, inside=not events)
        source = open_video(videos[0], frames=frames, fps=frame_rate, **reading)
        if events:
            quiet = list(dict.fromkeys([*quiet_labels(loaded), *(quiet or [])]))
            rate = 30.0 if fps is None else fps
            found = find_events(
                loaded, source, threshold, hold, quiet, fps=rate, time_limit=time_limit
            )
            if quiet:
                print(f'never said: {one_line(", ".join(quiet))}', file=sys.stderr)
            _show_events(found, as_json)
            return
        answers = predict_stream(loaded, source, topk, fps=fps, last=last, time_limit=time_limit)
        _show_answers(answers, as_json)
        return
    if fps is not None and frame_rate is not None:
        raise typer.BadParameter('--fps is as --frame-rate without --stream: give one of them')
    frame_rate = fps if frame_rate is None else frame_rate
    if every is None and (length is not None or timeline is not None):
        raise typer.BadParameter('--length and --timeline are of windows: give --every SECONDS')
    if every is not None and evidence is not None:
        raise typer.BadParameter('--evidence is of the whole video: leave out --every')
    names = find_videos(videos, reading['protocols'])
    titles = ['/dev/stdin' if name == '-' else name for name in names]  # as in results
    stems = _stems(titles)
    pictures = _places('--evidence', evidence, ('.png',), stems)
    timelines = _places('--timeline', timeline, ('.png',), stems)
    copies = _places('--save', save, SUFFIXES, stems)
    check_frames(frames, frame_rate, names)
    readers: list[Any] = list(names)
    for i, name in enumerate(names):
        # What can be read once is kept by its reader for the annotated copy.
        if name == '-' or is_url(name):
            readers[i] = open_video(name, **reading)
        elif os.path.isdir(name):
            readers[i] = open_video(name, frames=frames, fps=frame_rate)
    sources = dict(zip(titles, readers, strict=True))
    failures = Failures(len(names), max_failed, errors)
    results = []
    with bar('videos' if every is None else 'windows') as show:
        options = {
            'num_clips': clips,
            'num_crops': crops,
            'batch_size': batch_size,
            'workers': workers,
            'on_error': on_error,
            'failures': failures,
            'time_limit': time_limit,
            'progress': show,
        }
        loaded = load_model(model, precision, inside=evidence is not None)
        if every is None:
            found = predict_many(loaded, readers, topk, **options)
        else:
            found = windows_many(loaded, readers, every, length, topk, **options)
        for result in found:
            results.append(result)
            if not as_json:
                _show_prediction(result)
            video = result['video']
            try:
                if video in timelines:
                    save_timeline(result, timelines[video])
                if video in pictures:
                    seen = find_evidence(loaded, sources[video], topk, time_limit=time_limit)
                    save_evidence(seen, pictures[video])
                if video in copies:
                    show(note=f'writing the copy of {os.path.basename(stems[video])}')
                    save_annotated(result, sources[video], copies[video], time_limit=time_limit)
            except VideoError as error:  # damage between the frames that were predicted from
                if on_error == 'raise':
                    raise
                failures.add(video, error)
            show(note=f'video {len(results)} of {len(names)}' if len(names) > 1 and every else '')
    if as_json:
        print_json(results)
    if failures:
        print(failures.summary(), file=sys.stderr)


@app.command()
def demo(
    model: options.Model = 'bvtam_r50_8x2',
    port: Annotated[int, Option(help='Of the page, on this machine.')] = 7860,
    share: Annotated[
        bool, Option('--share', help="Let others see it, through Gradio's servers.")
    ] = False,
    auth: Annotated[
        str,
        Option(metavar='USER:PASSWORD', help='Ask for these (default: --share makes a password).'),
    ] = '',
    max_size: Annotated[int, Option(min=1, help='MB of an upload.')] = 200,
) -> None:
    """Open a page to drop or record a video on: what it shows, when, and where the evidence is."""
    from ..inference.demo import build, launch

    user, _, password = auth.partition(':')
    if auth and not (user and password):
        raise typer.BadParameter('--auth wants USER:PASSWORD')
    page = build(load_model(model, inside=True))
    login = launch(page, port, share, (user, password) if auth else None, max_size)
    print(f'open {page.share_url or page.local_url} (Ctrl-C ends it)', flush=True)
    if login and not auth:
        print(f'log in as {login[0]} with the password {login[1]}', flush=True)
    try:
        Event().wait()
    finally:
        page.close(verbose=False)


def _show_answers(answers: Iterable[dict[str, Any]], as_json: bool) -> None:
    """Each as soon as it is there: a line when the likeliest class is another, or a JSON object."""
    shown = None
    for number, answer in enumerate(answers):
        if as_json:
            print(',\n' if number else '[', json.dumps(answer), sep='', end='', flush=True)
            continue
        label, score = answer['top'][0]['label'], answer['top'][0]['score']
        if label != shown:
            print(f'{answer["time"]:8.2f} s  {score:.4f}  {one_line(label)}', flush=True)
        shown = label
    if as_json:
        print(']')


def _show_events(events: Iterable[Any], as_json: bool) -> None:
    """Each as soon as it is known: a line, which is a JSON object if `as_json`."""
    for event in events:
        line = (
            f'{event["time"]:8.2f} s  {event["score"]:.4f}  {one_line(event["label"])}  '
            f'({event["start"]:.2f} to {event["end"]:.2f} s)'
        )
        print(json.dumps(event) if as_json else line, flush=True)


def _places(
    option: str, path: Path | None, suffixes: tuple[str, ...], stems: dict[str, str]
) -> dict[str, Path]:
    """The file to write for each video: `path`, or one in this folder; none without a path."""
    if path is None:
        return {}
    if path.is_dir() or not path.suffix:
        return {video: path / f'{stem}{suffixes[0]}' for video, stem in stems.items()}
    if len(stems) > 1:
        raise typer.BadParameter(f'{option} must be a folder, since there are several videos')
    if path.suffix.lower() not in suffixes:
        raise typer.BadParameter(
            f'{option} must be a folder or end in {" or ".join(suffixes)}, not {path.name}'
        )
    return dict.fromkeys(stems, path)


def _stems(videos: list[str]) -> dict[str, str]:
    """A name for what is made of each video: its own, with the folders that they do not share."""
    from ..data.video.addresses import is_url

    paths = [os.path.abspath(f'/{v.partition("://")[2]}' if is_url(v) else v) for v in videos]
    base = os.path.commonpath([os.path.dirname(path) for path in paths])
    names = [os.path.relpath(path, base) for path in paths]
    stems = [os.path.splitext(name)[0] for name in names]
    if len(set(stems)) < len(stems):  # a.mp4 beside a.avi
        stems = names
    return dict(zip(videos, stems, strict=True))


def _show_prediction(result: dict[str, Any]) -> None:
    if 'windows' in result:
        rows = [
            [f'{w["start"]:.2f}', f'{w["end"]:.2f}', t['label'], t['index'], f'{t["score"]:.4f}']
            for w in result['windows']
            for t in w['top'][:1]
        ]
        table(['start', 'end', 'label', 'index', 'score'], rows, result['video'])
    else:
        rows = [[t['label'], t['index'], f'{t["score"]:.4f}'] for t in result['top']]
        table(['label', 'index', 'score'], rows, result['video'])
