"""Model cards and `config.json`: what a zoo folder says of itself, generated, never typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import EvalResult, ModelCardData
from timm.models import model_entrypoint
from timm.models._hub import save_config_for_hf

from ..clip import ClipConfig
from ..models._zoo_model import ZooModel
from ..weights import zoo
from ..weights.table import Entry


def write_config(model: ZooModel, path: Path, licence: str = '', weights: str = '') -> None:
    """`config.json`: timm's keys, "clip" and, where they are known, label names; "weights" names the
    folder beside it whose weights these are too.

    timm ignores the additional key, so `timm.create_model('hf-hub:...')` reads the same folder.
    """
    extra: dict[str, Any] = {'label_names': model.label_names}
    if weights:
        extra['weights'] = weights
    if model.clip_config is not None:
        extra['clip'] = model.clip_config.to_dict()
    save_config_for_hf(model, str(path), model_config=extra)
    config = json.loads(path.read_text('utf-8'))
    config['pretrained_cfg'].pop('license', None)
    if licence:
        config['pretrained_cfg']['license'] = licence
    path.write_text(f'{json.dumps(config, indent=2)}\n', encoding='utf-8')


def card(model: ZooModel, entry: Entry | None = None, origin: str = '', licence: str = '') -> str:
    """The model card, with the metadata that the Hub reads.

    Args:
        entry: the published weights that the model has, for their origin and metrics.
        origin: where other weights come from, in a sentence.
        licence: of other weights, as the Hub names it; left open when nobody chose one.
    """
    name = entry.name if entry else model.model_name
    task = f'{"image" if model.input_kind == "image" else "video"}-classification'
    data = ModelCardData(
        model_name=name,
        library_name='timm',
        pipeline_tag=task,
        license=(entry.licence if entry else licence) or None,
        tags=['bvtam', 'video-recognition'],
        eval_results=_results(entry, task) if entry else None,
    )
    parts = [f'---\n{data.to_yaml()}\n---', f'# {name}']
    if entry and entry.ships:
        parts += [f'{entry.dataset} weights, trained by this project.', f'## Data\n\n{entry.about}']
        parts.append(f'## Training\n\n{entry.training}')
    elif entry:
        parts.append(
            f'{entry.dataset} weights of [{entry.release}]({entry.code}), licence {entry.licence}, as the '
            f'release states for its code.\nPaper: {entry.paper}.'
        )
    parts += [origin] if origin or entry else ['Origin not recorded.']
    parts.append(_facts(model, entry))
    if entry:
        parts += [_metrics(entry), _how_to_get(entry)]
    source = name if entry else 'local-dir:PATH_OF_THIS_FOLDER'
    parts.append(
        '## Use\n\n```python\nimport bvtam\n\n'
        f"model = bvtam.create_model('{source}', pretrained=True)\n```"
    )
    limits = 'No label names come with these weights: predictions are class numbers, in the order of the dataset.'
    if entry:
        parts.append(f'## Limits\n\nTrained on {entry.dataset} alone. {entry.limits or limits}')
    return '\n\n'.join(part for part in parts if part) + '\n'


def _results(entry: Entry, task: str) -> list[EvalResult]:
    return [
        EvalResult(
            task_type=task,
            dataset_type=entry.dataset.lower().replace(' ', '-'),
            dataset_name=entry.dataset,
            metric_type='accuracy',
            metric_name=f'top-1, {metric["views"]}',
            metric_value=metric['top1'],
            source_name=f'published by {entry.release}' if entry.code else None,
            source_url=entry.code or None,
        )
        for metric in entry.metrics
    ]


def _facts(model: ZooModel, entry: Entry | None) -> str:
    params = sum(p.numel() for p in model.parameters())
    facts = [f'{params:,} parameters, {model.num_classes} classes']
    if clip := model.clip_config:
        stride = f', stride {clip.frame_stride}' if clip.sampling == 'dense' else ''
        frames = [f'{clip.num_frames} frames, {clip.sampling} sampling{stride}']
        facts += [
            *(frames if model.input_kind == 'clip' else ()),
            f'shorter side {clip.resize}, crop {clip.crop_size}',
            f'views at test time: {clip.num_clips} clip(s) x {clip.num_crops} crop(s)',
        ]
        if clip.colors == 'jpeg':
            facts.append(
                'colours of videos as in the JPEG files that FFmpeg extracts (`colors: jpeg`)'
            )
    if entry and entry.costs:
        view = 'one image of 224'
        if clip:
            view = f'one clip of {clip.num_frames} frames, one crop of {clip.crop_size}'
        facts.append(f'{entry.costs["conv_macs"] / 1e9:.2f} GMACs of convolutions for {view}')
    return '\n'.join(f'- {fact}' for fact in facts)


def _metrics(entry: Entry) -> str:
    if entry.ships:
        rows = '\n'.join(
            f'| {m["views"]} | {m["top1"]} | `{m["command"]}` |' for m in entry.metrics
        )
        return (
            '## Accuracy\n\nMeasured here, on clips that training never saw.\n\n'
            f'| clips | top-1 (%) | command |\n|---|---|---|\n{rows}'
        )
    rows = '\n'.join(f'| {m["views"]} | {m["top1"]} |' for m in entry.metrics)
    return (
        f'## Accuracy\n\nOn {entry.dataset}, as published by the release; not measured again here.\n\n'
        f'| views | top-1 (%) |\n|---|---|\n{rows}'
    )


def _how_to_get(entry: Entry) -> str:
    if entry.ships:
        text = '## Weights\n\nThey come with the package: no download.'
        if entry.earlier:
            files = '\n'.join(
                f'- {old["about"]}: SHA-256 `{old["sha256"]}`' for old in entry.earlier
            )
            text += f'\n\nEarlier files of this name:\n\n{files}'
        return text
    if entry.url:
        return (
            f"## Weights\n\n`pretrained=True` downloads the authors' file from {entry.url}, converts it once "
            'into your cache, and never again.'
        )
    return (
        f'## Weights\n\nThey are behind a web page: open {entry.page} in a browser, save `{entry.file}`, then run, '
        f'once,\n\n```\nbvtam convert {entry.file} --name {entry.name}\n```'
    )


def published_model(entry: Entry) -> ZooModel:
    """The model of an entry without its weights, on the meta device, as its card and config describe it."""
    with torch.device('meta'):
        model = model_entrypoint(entry.arch)(
            pretrained=False, pretrained_cfg_overlay={'num_classes': entry.num_classes}
        )
    if model.clip_config:
        model.clip_config = ClipConfig.from_dict(model.clip_config.to_dict() | (entry.clip or {}))
    return model


def write_folder(entry: Entry, folder: Path) -> None:
    """`config.json` and `README.md` of weights that do not ship; of those that do, the card alone."""
    model = published_model(entry)
    folder.mkdir(parents=True, exist_ok=True)
    if not entry.ships:
        write_config(model, folder / zoo.CONFIG, entry.licence)
    (folder / zoo.CARD).write_text(card(model, entry), encoding='utf-8')
