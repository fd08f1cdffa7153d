"""The table and the figure of `reality.py`, from its results alone."""

import json
import statistics
from collections import defaultdict
from hashlib import sha256
from pathlib import Path

from PIL import Image

RESULTS = Path(__file__).parent / 'results' / 'reality.json'
COLORS = 'tam', 'tsm', 'none', 'frame', 'tsn', 'probe', 'zero'


def load(path=RESULTS):
    return json.loads(path.read_text()) if path.exists() else []


def digest(data):
    return sha256(data).hexdigest()


def percent(counts):
    """Accuracy of {label: [right ones, all]}."""
    hits, videos = map(sum, zip(*counts.values(), strict=True))
    return 100 * hits / videos


def collect(rows):
    """{(model, weights, clip, arm, recipe): {(train, test, shots): accuracies (%), one a seed}}, model by
    model and arm by arm; `train` is '' without training."""
    found = defaultdict(lambda: defaultdict(list))
    models, arms = ([*dict.fromkeys(row[key] for row in rows)] for key in ('model', 'arm'))
    for row in sorted(rows, key=lambda r: (models.index(r['model']), arms.index(r['arm']))):
        for kind, name in (('swipes', f'{row["arm"]}, four swipes'), ('right', row['arm'])):
            group = row['model'], row['weights'][:8], row['clip'], name, row['recipe']
            for test, counts in row.get(kind, {}).items():
                if counts:  # the weights have all classes
                    found[group][row['train'], test, row['shots']].append(percent(counts))
    return found


def spread(values):
    """Mean and standard deviation."""
    return statistics.fmean(values), statistics.stdev(values) if values[1:] else 0.0


def table(rows):
    """Markdown: accuracies, with mean and standard deviation where there are several seeds."""
    groups = collect(rows)
    columns = sorted({column for found in groups.values() for column in found})
    heads = [f'{n} of {train} to {test}' if n else f'on {test}' for train, test, n in columns]
    heads = ['model', 'weights', 'clip', 'arm', 'recipe', 'seeds', *heads]
    lines = [f'| {" | ".join(heads)} |', '|---' * len(heads) + '|']
    for (model, sha, clip, arm, recipe), found in groups.items():
        cells = [f'`{model}`', sha, clip, arm, recipe, str(max(map(len, found.values())))]
        for values in (found.get(column, []) for column in columns):
            text = '{:.1f} ± {:.1f}' if values[1:] else '{:.1f}'
            cells.append(text.format(*spread(values)) if values else '')
        lines.append(f'| {" | ".join(cells)} |')
    on = {
        f'{r["cores"]} cores ({r["instructions"]}), {r["device"]}, torch {r["torch"]}' for r in rows
    }
    return '\n'.join([*lines, '', f'{"; ".join(sorted(on))}; `python benchmarks/reality.py DATA`.'])


def figure(rows, path):
    """A row for each model and a panel for each way from part to part: accuracy by clips of a class."""
    from matplotlib.figure import Figure

    groups = collect(rows)
    models = [*dict.fromkeys(model for model, *_ in groups)]
    tests = sorted({test for found in groups.values() for _, test, _ in found})
    ways = sorted({(train, test) for found in groups.values() for train, test, _ in found if train})
    ways = ways or [('', test) for test in tests]
    drawing = Figure(figsize=(7 * len(ways), 4.5 * len(models)), layout='constrained')
    panels = drawing.subplots(len(models), len(ways), squeeze=False)
    for (model, *_, arm, _), found in groups.items():
        color = f'C{COLORS.index(arm.replace("_", " ").split()[0])}'
        line = '--' if arm.endswith('scratch') else ':' if arm.endswith(('new', 'swipes')) else '-'
        style = {'color': color, 'linestyle': line, 'label': arm}
        for (train, test), axes in zip(ways, panels[models.index(model)], strict=True):
            if ('', test, 0) in found:
                axes.axhline(spread(found['', test, 0])[0], **style)
            shots = sorted(n for t, to, n in found if n and (t, to) == (train, test))
            if shots:
                means, spreads = zip(*(spread(found[train, test, n]) for n in shots), strict=True)
                axes.errorbar(shots, means, spreads, marker='o', capsize=3, **style)
                axes.set_xticks(shots)
            axes.set(title=f'{model}, {train} to {test}', xlabel='clips of a class')
            axes.set(ylabel='top-1 (%)', ylim=(0, 101))
    for axes in panels.flatten():
        axes.legend(fontsize='small', loc='center left', bbox_to_anchor=(1, 0.5))
    text = {'Description': digest(json.dumps(rows).encode())}
    drawing.savefig(path, dpi=80, metadata=text)


def check(rows, path):
    """Ends with a line where the figure or the table in the docs is not of these results."""
    import tables

    drawn_of = Image.open(path).text.get('Description') if path.exists() else None
    if drawn_of != digest(json.dumps(rows).encode()):
        raise SystemExit(f'{path} is of other results: python benchmarks/reality.py --plot')
    if tables.written((tables.ROOT / 'docs/results.md').read_text(), 'reality') != table(rows):
        raise SystemExit('docs/results.md is of other results: python benchmarks/tables.py reality')
