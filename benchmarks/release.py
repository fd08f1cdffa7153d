"""Makes weights of a finished run ship: measured, rounded to float16, with a card.

    python benchmarks/release.py RUN ARCH.motion [--count 2016] [--videos 560]

The name has a row in bvtam/weights/published.json, whose metrics are written here. A row with "weights" names
the row whose file it shares; release that one first, from the same run.
"""

import argparse
import json
from pathlib import Path

import bvtam
from bvtam.clip import ClipConfig
from bvtam.engine.evaluate_motion import evaluate_motion
from bvtam.hub import cards
from bvtam.hub.publish import save_pretrained
from bvtam.weights import zoo
from bvtam.weights.table import entries

ROOT = Path(__file__).parents[1]
TABLE = ROOT / 'bvtam/weights/published.json'


def metric(model, name, count, videos):
    """One line of the card; its command repeats it."""
    found = evaluate_motion(bvtam.optimize(model), count, 1, videos=videos)
    families = ', '.join(f'{k} {v["top1"]:.1f}' for k, v in found['families'].items())
    what = 'by way of H.264 files, 320x240 at 10 fps' if videos else 'rendered'
    return {
        'top1': round(found['top1'], 1),
        'views': f'{count} clips of seed 1, {what} ({families})',
        'command': f'bvtam eval {name} --data motion --count {count} --seed 1'
        + ' --videos' * videos,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('run')
    parser.add_argument('name')
    parser.add_argument('--count', type=int, default=2016)
    parser.add_argument('--videos', type=int, default=560)
    options = parser.parse_args()
    name, entry = options.name, entries()[options.name]
    trained = bvtam.create_model(options.run, pretrained=True)
    model = bvtam.create_model(entry.arch, **trained._model_args)
    model.load_state_dict(trained.state_dict())
    model.clip_config = ClipConfig.from_dict(model.clip_config.to_dict() | entry.clip)
    model.label_names = trained.label_names
    folder = save_pretrained(model.eval(), ROOT / 'zoo' / name, half=True)  # rounds the model too
    table = json.loads(TABLE.read_text())
    (row,) = (row for row in table['weights'] if row['name'] == name)
    row['metrics'] = [
        metric(model, name, options.count, videos=False),
        metric(model, name, options.videos, videos=True),
    ]
    TABLE.write_text(json.dumps(table, indent=1) + '\n')
    entries.cache_clear()
    save_pretrained(model, folder, entry=entries()[name], half=True)
    if entry.weights:
        own, shared = (zoo.sha256(f / zoo.WEIGHTS) for f in (folder, folder.parent / entry.weights))
        assert own == shared, f'{name} and {entry.weights} are not of the same run'
        cards.write_config(model, folder / zoo.CONFIG, entry.licence, entry.weights)
        (folder / zoo.WEIGHTS).unlink()
    print(json.dumps(row['metrics'], indent=1))


if __name__ == '__main__':
    main()
