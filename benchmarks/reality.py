"""What weights that have seen procedural motion alone know of real gestures: zero-shot, probed, finetuned.

    python benchmarks/reality.py DATA [--models NAME ...] [--weights FOLDER] [--arms ARM ...] [--train PART ...]
        [--shots 1 5 all] [--seeds 0 1 2] [--minutes M] [--recipe NAME] [--set KEY=VALUE ...]
    python benchmarks/reality.py --plot     the table and the figure anew, from the results alone
    python benchmarks/reality.py --check    whether docs and figure are of these results

DATA holds parts by different people, each with a folder for each class: egogestar/a/left/1.mp4, as ten
gestures of EgoGestAR (github varunj/EgoGestAR), seen from the wearer's eyes. The arms, cheapest first:

    zero_shot  no training: each gesture has the scores of its classes in `GESTURES`; the swipes also alone
    probe      logistic regression on the features of `create_model(..., pretrained=True, num_classes=0)`
    others     trained by a recipe of the package on clips of one part, tested on each of the other parts

A trained arm has the temporal operator that its name begins with. `frame` has none, and every frame stands
in both places of a pair of its own, so the same layers see frames one by one, twice as many pairs; `tsn` is
an image ResNet that does. `*_scratch` and `tsn` start at random, `tam` from all weights, the others from all but those
of temporal operators. The weights were trained with TAM, which does not make them the best start for
another operator: `tam_new`, whose TAMs begin anew, is what to compare `tsm`, `none` and `frame` with. Where
the recipe keeps the batch norms of the first weights, only `tam` does: elsewhere they would not fit. All
have the frames and the size that the weights have, unless the recipe names others.

A seed draws the clips, as many of each class, and whatever is random in training. The recipe holds out a
share of them to choose the best epoch; of one clip a class none is. A result is written to
benchmarks/results/reality.json as it comes; what is there is not measured again, and the same command
goes on with a run that was stopped.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
import yaml
from bounds import one_by_one
from reality_report import RESULTS, check, digest, figure, load, percent, table

import bvtam
from bvtam.clip import ClipConfig
from bvtam.data.load import load_records
from bvtam.engine.recipe import Recipe, find_recipe
from bvtam.engine.run import build
from bvtam.engine.setup import enough_epochs
from bvtam.engine.train import Trainer
from bvtam.errors import BvtamError
from bvtam.files import write_file
from bvtam.inference.extract import local_device
from bvtam.weights.zoo import weights_file

MODELS = 'bvtam_tiny_8x2.motion', 'bvtam_r50_8x2.motion'
ALL = 1_000_000  # clips of a class
SWIPES = 'left', 'right', 'up', 'down'
GESTURES = {  # classes of the weights; those that they lack are left out
    **{swipe: (f'swipe_{swipe}', swipe) for swipe in SWIPES},
    'carret': ('caret',),
    'circlecc': ('circle_anticlockwise',),
    'del': ('cross',),
    'square': ('square_clockwise',),
    'star': ('star',),
    'tick': ('tick',),
}


@dataclass(frozen=True)
class Arm:
    """A model that is trained; `start`: 'all', 'spatial' (no temporal weights) or 'scratch'."""

    temporal: str
    start: str
    one_by_one: bool = False  # every frame in both places of a pair of its own
    tsn: bool = False


ARMS = {
    'zero_shot': None,
    'probe': None,
    'tam': Arm('tam', 'all'),
    'tam_new': Arm('tam', 'spatial'),
    'tsm': Arm('tsm', 'spatial'),
    'none': Arm('none', 'spatial'),
    'frame': Arm('none', 'spatial', one_by_one=True),
    'tam_scratch': Arm('tam', 'scratch'),
    'tsm_scratch': Arm('tsm', 'scratch'),
    'none_scratch': Arm('none', 'scratch'),
    'frame_scratch': Arm('none', 'scratch', one_by_one=True),
    'tsn': Arm('none', 'scratch', tsn=True),
}
BACKBONES = {'tiny': 'test_resnet', 'r50': 'resnet50', 'r101': 'resnet101', 'r152': 'resnet152'}


class Job(NamedTuple):
    """What a result is of; `weights` is their SHA-256, `train` the part, `shots` its clips of a class."""

    model: str
    weights: str
    clip: str
    arm: str
    train: str
    shots: int
    seed: int
    recipe: str


# ---- what is to be measured ----


def read_parts(data):
    """{part: {label: videos}}"""
    layout = 'DATA holds PART/LABEL/VIDEO, such as egogestar/a/left/1.mp4'
    if not data or not data.is_dir():
        raise BvtamError(f'{data or "DATA"}: no such folder; {layout}')
    parts = {}
    for folder in sorted(f for f in data.iterdir() if f.is_dir() and f.name[0] != '.'):
        records, names = load_records(folder)
        if names is None:
            raise BvtamError(f'{folder} holds no class folders; {layout}')
        parts[folder.name] = {name: [] for name in names}
        for record in records:
            parts[folder.name][names[record.label]].append(record.source)
    if len(parts) < 2 or len({tuple(videos) for videos in parts.values()}) > 1:
        raise BvtamError(f'{data} needs two parts or more, of the same classes; {layout}')
    return parts


def drawn(videos, shots, seed):
    """{label: `shots` videos}, in an order that the seed gives: a few are among more."""
    return {
        label: random.Random(f'{seed} {label}').sample(found, len(found))[:shots]
        for label, found in videos.items()
    }


def find_weights(name, folder):
    """The model with the weights of a name, or in their place those in a folder, and their SHA-256."""
    model = bvtam.create_model(folder or name, pretrained=True).eval()
    if model.model_name != name.partition('.')[0]:
        raise BvtamError(f'--weights {folder} is a {model.model_name}: say so with --models')
    return model, digest(weights_file(model.pretrained_cfg['file']).read_bytes())


def clip_of(model, options):
    """The clips that models are trained on: as those of the weights, unless the recipe says otherwise."""
    changes = Recipe.load(options.recipe, options.set).clip
    return ClipConfig.from_dict(model.clip_config.to_dict() | changes)


def jobs(options, parts, weights):
    """Every result that is wanted, cheapest first; `weights`: {name: what `find_weights` gives}."""
    file = find_recipe(options.recipe)
    # What the recipe sets, whatever its comments say.
    settings = json.dumps(yaml.safe_load(file.read_text()), sort_keys=True)
    recipe = ' '.join([f'{file.stem} ({digest(settings.encode())[:8]})', *options.set])
    found = []
    sets = product(weights, options.arms, options.seeds, options.shots, options.train or parts)
    for name, arm, seed, shots, train in sets:
        (model, sha), how = weights[name], ARMS[arm]
        most = max(map(len, parts[train].values()))
        if arm == 'zero_shot':
            train, shots, seed = '', 0, 0
        elif arm == 'probe' and shots >= most:  # nothing is random then
            seed = 0
        clip = clip_of(model, options) if how else model.clip_config
        clip = f'{clip.num_frames} x {clip.crop_size}²'
        sha = '' if how and how.start == 'scratch' else sha
        draw = train, min(shots, most), seed
        found.append(Job(name, sha, clip, arm, *draw, recipe if how else ''))
    names, arms = [*weights], [*ARMS]

    def cost(job):
        arm = arms.index(job.arm)
        return min(arm, 2), names.index(job.model), job.seed, job.shots, job.train, arm

    return sorted({*found}, key=cost)


# ---- measuring ----


def scores(model, videos):
    """(label, {class: score}) of each video of {label: videos}."""
    pairs = [(label, video) for label, found in videos.items() for video in found]
    model = model.to(local_device())
    results = bvtam.predict_many(model, [video for _, video in pairs], model.num_classes)
    for (label, _), result in zip(pairs, results, strict=True):
        yield label, {top['label']: top['score'] for top in result['top']}


def right(answers):
    """{label: [right ones, all]} of pairs (label, scores)."""
    found = defaultdict(lambda: [0, 0])
    for label, given in answers:
        found[label][0] += max(given, key=given.get) == label
        found[label][1] += 1
    return dict(found)


def zero_shot(model, parts):
    """Right ones of all gestures and of the swipes; None where the weights lack classes of one."""
    found = {'right': {}, 'swipes': {}}
    for part, videos in parts.items():
        if unknown := [label for label in videos if label not in GESTURES]:
            raise BvtamError(f'zero_shot: add {", ".join(unknown)} to GESTURES, or leave it out')
        answers = [*scores(model, videos)]
        for kind, labels in (('right', [*videos]), ('swipes', [s for s in SWIPES if s in videos])):
            classes = {x: [c for c in GESTURES[x] if c in model.label_names] for x in labels}
            found[kind][part] = None
            if labels and all(classes.values()):
                found[kind][part] = right(
                    (label, {x: sum(given[c] for c in classes[x]) for x in labels})
                    for label, given in answers
                    if label in labels
                )
    return found


def logistic_regression(x, y):
    """The function from features (N, D) to scores with the least sum of losses on (x, y), plus half the
    sum of its squared weights, but for those of the bias; features are standardised."""
    mean, std = x.mean(0), x.std(0, correction=0) + 1e-6
    weight = torch.zeros(x.shape[1] + 1, int(y.max()) + 1, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=500, line_search_fn='strong_wolfe')

    def classify(x):
        return F.pad((x - mean) / std, (0, 1), value=1) @ weight

    def loss():
        optimizer.zero_grad()
        total = F.cross_entropy(classify(x), y, reduction='sum')
        total = total + weight[:-1].square().sum() / 2
        total.backward()
        return total

    optimizer.step(loss)
    return lambda x: classify(x).detach()


def probe(job, parts, features):
    """Logistic regression on the drawn clips; `features`: {video: (D,)}."""
    names = [*parts[job.train]]

    def stacked(videos):
        labels = [i for i, name in enumerate(names) for _ in videos[name]]
        rows = [features[video] for name in names for video in videos[name]]
        return torch.stack(rows).double(), torch.tensor(labels)

    classify = logistic_regression(*stacked(drawn(parts[job.train], job.shots, job.seed)))
    found = {}
    for part in parts.keys() - {job.train}:
        x, y = stacked(parts[part])
        answers = zip([names[label] for label in y], classify(x).tolist(), strict=True)
        found[part] = right((label, dict(zip(names, row, strict=True))) for label, row in answers)
    return {'right': found}


def extract(source, parts, folder):
    """{video: its features (D,)}, as a user would get them."""
    model = bvtam.create_model(source, pretrained=True, num_classes=0).to(local_device())
    videos = [video for found in parts.values() for label in found.values() for video in label]
    bvtam.extract(model, videos, folder, on_error='raise')
    return {video: rows.features[0] for video, rows in bvtam.load_features(folder).items()}


def spatial_weights(given):
    """The model without temporal operators, with all the weights of `given` that it has."""
    options = {'num_classes': given.num_classes, 'temporal': 'none'}
    model = bvtam.create_model(given.model_name, **options)
    model.load_state_dict({k: v for k, v in given.state_dict().items() if '.temporal.' not in k})
    model.clip_config, model.label_names = given.clip_config, given.label_names
    return model


def recipe_of(job, given, folder, options):
    """How an arm is trained on `folder`/clips; its first weights are written to `folder`/start."""
    arm, name = ARMS[job.arm], given.model_name
    made, init = {'temporal': arm.temporal}, ''
    if arm.tsn:
        made = {'backbone': BACKBONES[name.split('_')[1]]}
        name = 'tsn_resnet50_f8'
    if arm.start == 'all':
        init = options.weights or job.model
    elif arm.start == 'spatial':
        init = bvtam.save_pretrained(spatial_weights(given), folder / 'start')
    settings = [*options.set, f'model={name}', f'init={init}', f'seed={job.seed}']
    if job.shots == 1:
        settings.append('val_share=0')
    recipe = Recipe.load(options.recipe, settings)
    if arm.start == 'spatial' and recipe.regularize.freeze_bn == 'auto':
        recipe = replace(recipe, regularize=replace(recipe.regularize, freeze_bn='none'))
    clip = json.loads(json.dumps(clip_of(given, options).to_dict()))  # lists, as files have them
    if 'flip' not in recipe.clip:
        del clip['flip']
    recipe = replace(recipe, clip=clip, model_options=recipe.model_options | made)
    return recipe.with_data(os.fspath(folder / 'clips'))


def finetune(job, given, parts, folder, options):
    """Trains a model of an arm by the recipe, and tests it on the other parts."""
    arm, videos = ARMS[job.arm], parts[job.train]
    shutil.rmtree(folder / 'clips', ignore_errors=True)
    for label, chosen in drawn(videos, job.shots, job.seed).items():
        (folder / 'clips' / label).mkdir(parents=True)
        for video in chosen:
            link = folder / 'clips' / label / f'{videos[label].index(video):05}{Path(video).suffix}'
            link.symlink_to(Path(video).resolve())
    resumed, began = (folder / 'run').exists(), time.monotonic()
    recipe = recipe_of(job, given, folder, options)
    model, train_set, val_set = build(recipe)  # as `bvtam.train` does, but for the frames
    recipe = enough_epochs(recipe, len(train_set))
    if arm.one_by_one:
        one_by_one(model)
    Trainer(model, recipe, train_set, val_set, folder / 'run').fit()
    seconds = None if resumed else round(time.monotonic() - began, 1)
    model = bvtam.create_model(folder / 'run').eval()
    if arm.one_by_one:
        one_by_one(model)
    found = {part: right(scores(model, parts[part])) for part in parts if part != job.train}
    shutil.rmtree(folder)
    return {'right': found, 'epochs': recipe.schedule.epochs, 'train_seconds': seconds}


def measure(job, given, parts, options, features):
    """The row of a job; `features` keeps those of each model."""
    began, cpu, key = time.monotonic(), sum(os.times()[:4]), digest(repr(job).encode())[:8]
    command = f'python benchmarks/reality.py DATA --models {job.model} --arms {job.arm}'
    if job.train:
        command += f' --train {job.train} --shots {job.shots} --seeds {job.seed}'
    if job.arm == 'zero_shot':
        found = zero_shot(given, parts)
    elif job.arm == 'probe':
        if job.model not in features:
            folder = options.runs / f'features-{job.model}-{job.weights[:8]}'
            features[job.model] = extract(options.weights or job.model, parts, folder)
        found = probe(job, parts, features[job.model])
    else:
        words = ['--recipe', options.recipe, *(['--set', *options.set] if options.set else [])]
        command += f' {shlex.join(words)}'
        found = finetune(job, given, parts, options.runs / f'{job.model}-{job.arm}-{key}', options)
    device = local_device()
    found |= {'seconds': round(time.monotonic() - began, 1), 'command': command}
    found['cpu_seconds'] = round(sum(os.times()[:4]) - cpu, 1)  # of decoding processes too
    found |= {'bvtam': bvtam.__version__, 'torch': torch.__version__, 'device': device.type}
    found |= {'cores': os.cpu_count(), 'threads': torch.get_num_threads()}
    found['instructions'] = torch.backends.cpu.get_cpu_capability()
    if device.type == 'cuda':
        found['device'] = torch.cuda.get_device_name(device)
    return job._asdict() | found


def measure_all(options, rows):
    """Adds to `rows`, and to their file, what they lack."""
    began, features, parts = time.monotonic(), {}, read_parts(options.data)
    if unknown := ', '.join({*(options.train or [])} - {*parts}):
        raise BvtamError(f'--train: {options.data} has no {unknown}, only {", ".join(parts)}')
    if options.weights and len(options.models) > 1:
        raise BvtamError('--weights is for one model: name it with --models')
    weights = {name: find_weights(name, options.weights) for name in options.models}
    done = {Job(*(row[key] for key in Job._fields)) for row in rows}
    todo = [job for job in jobs(options, parts, weights) if job not in done]
    for i, job in enumerate(todo):
        if time.monotonic() - began > 60 * options.minutes:
            print(f'{len(todo) - i} results are left: the same command goes on')
            break
        row = measure(job, weights[job.model][0], parts, options, features)
        rows.append(row)
        lines = ',\n'.join(json.dumps(row, ensure_ascii=False) for row in rows)
        write_file(options.out, f'[\n{lines}\n]\n')
        found = {part: round(percent(x), 1) for part, x in row['right'].items() if x}
        print(
            job.model,
            job.arm,
            job.train,
            job.shots,
            job.seed,
            found,
            f'{row["seconds"]} s',
            flush=True,
        )


def clips(text):
    return ALL if text == 'all' else int(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    add = parser.add_argument
    add('data', type=Path, nargs='?', metavar='DATA', help='folder of PART/LABEL/VIDEO')
    add('--models', nargs='+', default=[*MODELS], metavar='NAME', help='weights by name')
    add('--weights', type=Path, metavar='FOLDER', help='of the model named, in place of its own')
    add('--arms', nargs='+', default=[*ARMS], choices=[*ARMS], metavar='ARM')
    add('--train', nargs='+', metavar='PART', help='parts to train on (default: each)')
    add('--shots', nargs='+', type=clips, default=[1, 5, ALL], help='clips of a class, or all')
    add('--seeds', nargs='+', type=int, default=[0, 1, 2])
    add('--minutes', type=float, default=float('inf'), help='after which no run begins')
    add('--recipe', default='finetune')
    add('--set', nargs='+', default=[], metavar='KEY=VALUE', help='of the recipe, for cheap trials')
    add('--runs', type=Path, default=Path('runs/reality'), help='folder of the runs under way')
    add('--out', type=Path, default=RESULTS, help='results; the figure lies beside them')
    add('--plot', action='store_true', help='draw the results that are there, and end')
    add('--check', action='store_true', help='compare figure and docs with them, and end')
    options = parser.parse_args()
    rows, path = load(options.out), options.out.with_suffix('.png')
    if options.check:
        return check(rows, path)
    if not options.plot:
        try:
            measure_all(options, rows)
        except (BvtamError, FileNotFoundError) as error:
            raise SystemExit(f'reality: {error}') from None
    figure(rows, path)
    print(table(rows))


if __name__ == '__main__':
    main()
