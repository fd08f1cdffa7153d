"""Writes the generated parts of README.md and docs/: tables, results, and the reference.

python benchmarks/models.py --json > benchmarks/results/models.json
bvtam bench 'bvtam_*_8x2' tsm_resnet50_f8 --out benchmarks/results
python benchmarks/claims.py
python benchmarks/bounds.py
python benchmarks/reality.py DATA
python benchmarks/tables.py            # all, and the cards in zoo/; counts all costs anew
python benchmarks/tables.py cli recipes settings    # these parts alone, in seconds
"""

import ast
import json
import sys
from functools import cache
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import bounds
import claims
import reality_report
import typer

import bvtam
from bvtam.cli import app
from bvtam.data.list_formats import FORMATS
from bvtam.deploy import bench
from bvtam.deploy.flops import flops
from bvtam.engine.recipe import RECIPES, list_recipes, settings
from bvtam.hub.cards import published_model, write_folder
from bvtam.weights.table import entries

ROOT = Path(__file__).parents[1]
ORDER = 'after_import errors files clip optional data layers weights models hub factory inference deploy engine cli'
ORDER = ORDER.split()  # of imports: a package uses only those before it
FEATURED = (
    'bvtam_r50_8x2.motion',
    'bvtam_tiny_8x2.motion',
    'bvtam_r50_8x2.ssv2_ibm',
    'bvtam_r101_32x2.ssv2_ibm',
    'blresnet50.in1k_ibm',
    'tam_resnet50_f32.k400_ibm',
    'tsm_resnet50_f8.k400_mit',
    'tsn_resnet50_f8.k400_mit',
)


def model_row(name):
    """One line of the model table, each model at its own frames and crop."""
    cost = flops(name)
    return (
        f'| `{name}` | {cost["num_frames"]} | {cost["size"]} | {cost["num_classes"]} '
        f'| {cost["params"] / 1e6:.2f} | {cost["conv_macs"] / 1e9:.2f} '
        f'| {cost["executed_macs"] / 1e9:.2f} |'
    )


def model_table():
    head = '| name | frames | size | classes | params (M) | GMACs | executed GMACs |\n|---|---|---|---|---|---|---|'
    return '\n'.join([head, *map(model_row, bvtam.list_models())])


def benchmark_table():
    result = json.loads((ROOT / 'benchmarks/results/models.json').read_text())
    lines = [
        '| batch | | form | time | peak memory | bytes kept for backward | of the fp32 matrix product |',
        '|---|---|---|---|---|---|---|',
    ]
    for row in result['rows']:
        if row['form'] == 'textbook':
            continue
        kept = f'{row["kept_bytes_ratio"]:.2f}' if 'kept_bytes_ratio' in row else ''
        share = f'{row["share_of_matmul"]:.0%}' if 'share_of_matmul' in row else ''
        lines.append(
            f'| {row["batch"]} | {row["what"]} | {row["form"]} | {row["time_ratio"]:.2f} '
            f'| {row["peak_memory_ratio"]:.2f} | {kept} | {share} |'
        )
    setting = (
        f'{result["cores"]} CPU cores, torch {result["torch"]}, {result["size"]} px, 16 frames; '
        '`python benchmarks/models.py`.'
    )
    return '\n'.join([*lines, '', setting])


def peers_table():
    return bench.markdown(json.loads((ROOT / 'benchmarks/results/bench.json').read_text()))


def claims_table():
    return claims.table(claims.load())


def bounds_section():
    return bounds.section(bounds.load())


def reality_table():
    return reality_report.table(reality_report.load())


def input_of(entry):
    """Frames and crop of one clip, at which the costs of an entry are counted."""
    clip = published_model(entry).clip_config
    return f'{clip.num_frames} x {clip.crop_size}²' if clip else '224²'


def weights_table(names=None, zoo='../zoo'):
    """The published weights, from the same table as their cards."""
    lines = [
        '| weights | dataset | top-1 (%) | views | input | GMACs | params (M) | comes by |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for entry in map(entries().get, names or entries()):
        metric = entry.metrics[0]
        source = f'[download]({entry.url})' if entry.url else f'[web page]({entry.page})'
        source = 'in the package' if entry.ships else source
        lines.append(
            f'| [`{entry.name}`]({zoo}/{entry.name}/README.md) | {entry.dataset} '
            f'| {metric["top1"]} | {metric["views"]} | {input_of(entry)} '
            f'| {entry.costs["conv_macs"] / 1e9:.1f} | {entry.costs["params"] / 1e6:.1f} | {source} |'
        )
    return '\n'.join(lines)


def featured_table():
    return weights_table(FEATURED, 'zoo')


def commands():
    """Name, typer's command and the function behind it, of every command."""
    group = typer.main.get_command(app)
    functions = {
        info.name or info.callback.__name__.replace('_', '-'): info.callback
        for info in app.registered_commands
    }
    return [(name, group.commands[name], functions[name]) for name in group.commands]


def cell(text):
    return str(text).replace('|', '\\|').replace('\n', ' ')


def cli_reference():
    """Every command with its arguments and options."""
    parts = []
    for name, command, function in commands():
        hints = get_type_hints(function, include_extras=True)
        arguments = [p for p in command.params if not p.opts[0].startswith('-')]
        usage = ' '.join(argument_name(p) for p in arguments)
        parts += [f'## {name}', '', f'`bvtam {name} [OPTIONS] {usage}`'.replace(' `', '`'), '']
        parts += [' '.join(text.split()) + '\n' for text in command.help.split('\n\n')]
        parts += ['| argument or option | default | |', '|---|---|---|']
        for param in command.params:
            if param.name != 'help':
                parts.append(option_row(param, hints[param.name]))
        parts.append('')
    return '\n'.join(parts).rstrip()


VALUES = {int: 'N', float: 'X', str: 'TEXT', Path: 'PATH'}


def argument_name(param):
    name = (param.metavar or param.name.upper()) + ('...' if param.nargs == -1 else '')
    return name if param.required else f'[{name}]'


def value_name(param, kind):
    """What follows an option, '' for a switch."""
    if get_origin(kind) is Literal:
        return '|'.join(get_args(kind))
    kinds = {kind, *get_args(kind)} & {*VALUES}
    return param.metavar or (VALUES[kinds.pop()] if kinds else '')


def option_row(param, hint):
    """A parameter of a command from its annotation, `Annotated[type, typer.Option(...)]`."""
    kind, *_ = get_args(hint)
    if param.opts[0].startswith('-'):
        name = f'{", ".join([*param.opts, *param.secondary_opts])} {value_name(param, kind)}'
    else:
        name = argument_name(param)
    default = '' if param.default in (None, False, '', ()) else f'`{param.default}`'
    text = ' '.join((hint.__metadata__[0].help or '').split())
    return (
        f'| `{cell(name.strip())}` | {"required" if param.required else default} | {cell(text)} |'
    )


def recipe_list():
    """The recipes that ship, each with the comment at its head."""
    parts = []
    for name in list_recipes():
        lines = (RECIPES / f'{name}.yaml').read_text().splitlines()
        comment = []
        for line in lines:
            if not line.startswith('#'):
                break
            comment.append(line.removeprefix('#').removeprefix(' '))
        rest = '\n'.join(comment[1:]).strip()
        parts += [f'### {name}', '', comment[0], '', '```text', rest, '```', '']
    return '\n'.join(parts).rstrip()


def settings_table():
    """Every setting of a recipe, from its dataclasses."""
    lines = ['| setting | default | |', '|---|---|---|']
    for name, default, text in settings():
        value = default or "''" if isinstance(default, str) else json.dumps(default)
        lines.append(f'| `{name}` | `{value}` | {cell(text)} |')
    return '\n'.join(lines)


def api_reference():
    """The public names, each by its docstring (mkdocstrings reads it)."""
    parts = []
    for name in bvtam.__all__:
        found = getattr(bvtam, name)
        parts += [f'::: {found.__module__}.{found.__qualname__}', '    options:']
        parts += [f'      heading: bvtam.{name}', f'      toc_label: {name}', '']
    return '\n'.join(parts).rstrip()


def list_formats():
    """Every format of lists and annotations."""
    lines = ['| format | looks like |', '|---|---|']
    return '\n'.join([*lines, *(f'| {cell(f.name)} | {cell(f.shape)} |' for f in FORMATS)])


def first_sentence(path):
    """Of the docstring of a module."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ''
    text = ' '.join(docstring.partition('\n\n')[0].split())
    end = text.find('. ')
    return text.rstrip(':') if end < 0 else text[: end + 1]


def layout(depth):
    """The package as a tree of `depth` levels, a line each from its docstring."""
    lines = []

    def walk(folder, level):
        modules = sorted(p for p in folder.glob('*.py') if not p.name.startswith('__'))
        packages = sorted(p.parent for p in folder.glob('*/__init__.py'))
        paths = [*modules, *packages]
        if not level:
            paths.sort(key=lambda path: ORDER.index(path.stem))
        for path in paths:
            is_package = path.is_dir()
            text = first_sentence(path / '__init__.py' if is_package else path)
            name = '  ' * level + path.name + ('/' if is_package else '')
            lines.append(f'{name:<28}{text}'.rstrip())
            if is_package and level + 1 < depth:
                walk(path, level + 1)

    walk(ROOT / 'bvtam', 0)
    return '```text\n' + '\n'.join(lines) + '\n```'


def packages():
    return layout(1)


def modules():
    return layout(3)


def recount():
    """Counts the costs of every entry anew, at its own frames, crop and classes, into the table."""
    path = ROOT / 'bvtam/weights/published.json'
    table, cost = json.loads(path.read_text()), cache(flops)
    for row in table['weights']:
        entry = entries()[row['name']]
        clip = published_model(entry).clip_config
        frames, size = (clip.num_frames, clip.crop_size) if clip else (None, None)
        counted = cost(entry.arch, frames, size, entry.num_classes)
        row['costs'] = {key: counted[key] for key in ('params', 'conv_macs')}
    path.write_text(json.dumps(table, indent=1) + '\n')
    entries.cache_clear()


PARTS = {
    'README.md': {'featured': featured_table, 'packages': packages},
    'docs/models.md': {'weights': weights_table, 'models': model_table},
    'docs/results.md': {
        'benchmark': benchmark_table,
        'peers': peers_table,
        'claims': claims_table,
        'bounds': bounds_section,
        'reality': reality_table,
    },
    'docs/guides/data_sets.md': {'list_formats': list_formats},
    'docs/reference/cli.md': {'cli': cli_reference},
    'docs/reference/recipes.md': {'recipes': recipe_list, 'settings': settings_table},
    'docs/reference/api.md': {'api': api_reference},
    'docs/develop/architecture.md': {'modules': modules},
}


def markers(part):
    return f'<!-- {part}, written by benchmarks/tables.py -->', f'<!-- end of {part} -->'


def written(text, part):
    """What stands between the two comments that mark `part`.

    Raises:
        ValueError: they are not there.
    """
    start, end = markers(part)
    _, _, rest = text.partition(start)
    content, found, _ = rest.partition(end)
    if not found:
        raise ValueError(f'{start} ... {end} are not there')
    return content.strip('\n')


def replace(text, part, content):
    start, end = markers(part)
    written(text, part)
    before, _, rest = text.partition(start)
    return f'{before}{start}\n{content}\n{end}{rest.partition(end)[2]}'


def main(chosen):
    known = [part for parts in PARTS.values() for part in parts]
    if unknown := sorted({*chosen} - {*known}):
        raise SystemExit(f'no part {", ".join(unknown)}: there are {", ".join(known)}')
    if not chosen:
        recount()
        for entry in entries().values():
            write_folder(entry, ROOT / 'zoo' / entry.name)
    for page, parts in PARTS.items():
        text = (ROOT / page).read_text()
        for part, write in parts.items():
            if not chosen or part in chosen:
                text = replace(text, part, write())
        (ROOT / page).write_text(text)


if __name__ == '__main__':
    main(sys.argv[1:])
