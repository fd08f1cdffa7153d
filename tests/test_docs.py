"""The pages: generated parts are up to date, what they name exists, and their examples run."""

import importlib.util
import pkgutil
import re
import shlex
import shutil
from pathlib import Path

import pytest
import typer
from support.cli import run

import bvtam
from bvtam.cli import app
from bvtam.engine.recipe import Recipe, settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md')]
PAGES += sorted((ROOT / 'docs').rglob('*.md'))
COMMANDS = typer.main.get_command(app).commands
SLOW_PARTS = ('models',)

pytestmark = pytest.mark.skipif(
    not (ROOT / 'docs').is_dir(), reason='the pages are part of the checkout'
)


def page_name(page):
    return str(page.relative_to(ROOT))


def inline_code(page):
    text = re.sub(r'^( *)```.*?^ *```$', '', page.read_text(), flags=re.M | re.S)
    return re.findall(r'`([^`\n]+)`', text)


def blocks(page, *languages):
    """(comment before it, text) of the fenced blocks of these languages."""
    pattern = r'(?:<!-- (not run: [^>]+) -->\n)?^ *```(\w*)\n(.*?)^ *```$'
    found = re.findall(pattern, page.read_text(), re.M | re.S)
    return [(comment, text) for comment, language, text in found if language in languages]


def command_lines(page):
    """The arguments of every bvtam command in the blocks of a page."""
    for _, block in blocks(page, '', 'bash'):
        for line in re.split(r'\n|&&|\|', block):
            words = shlex.split(line, comments=True)
            if words[:4] == ['accelerate', 'launch', '-m', 'bvtam']:
                words = words[3:]
            if words[:1] == ['bvtam']:
                yield words[1:]


@pytest.fixture
def tables(benchmark):
    return benchmark('tables')


@pytest.fixture
def docs_module():
    def load(name):
        spec = importlib.util.spec_from_file_location(name, ROOT / 'docs' / f'{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_generated_parts_are_up_to_date(tables):
    for page, parts in tables.PARTS.items():
        text = (ROOT / page).read_text()
        for part, write in parts.items():
            if part not in SLOW_PARTS:
                stale = f'{page} is stale: python benchmarks/tables.py {part}'
                assert tables.written(text, part) == write(), stale


def test_model_table_has_every_model(tables):
    table = tables.written((ROOT / 'docs/models.md').read_text(), 'models').splitlines()
    rows = {line.split('`')[1]: line for line in table if line.startswith('| `')}
    assert list(rows) == bvtam.list_models()
    for name in ('bvtam_tiny_8x2', 'blresnet50'):
        assert rows[name] == tables.model_row(name)


@pytest.mark.slow
def test_whole_model_table(tables):
    text = (ROOT / 'docs/models.md').read_text()
    assert tables.written(text, 'models') == tables.model_table()


def test_figures_are_as_their_program_draws_them(docs_module):
    for name, draw in docs_module('figures').FIGURES.items():
        assert (ROOT / 'docs/images' / name).read_text() == draw().svg(), 'python docs/figures.py'


@pytest.mark.parametrize('page', PAGES, ids=page_name)
def test_commands_of_a_page_parse(page):
    for name, *arguments in command_lines(page):
        context = COMMANDS[name].make_context(name, list(arguments))
        if name == 'train':
            pairs = [a for a in arguments if '=' in a and not a.startswith('-')]
            recipe = context.params['recipe']
            Recipe.load('finetune' if '=' in recipe or not recipe else recipe, pairs)


def test_inline_commands_and_options_exist():
    options = {
        name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)}
        for name, c in COMMANDS.items()
    }
    known = {'--help', *set().union(*options.values())}
    count = 0
    for page in PAGES:
        for code in inline_code(page):
            words = code.split()
            allowed = known
            if words[0] == 'bvtam' and len(words) > 1 and words[1].islower():
                assert words[1] in options, (page_name(page), code)
                allowed = {'--help', *options[words[1]]}
            elif not code.startswith('--'):  # of another program
                continue
            for option in re.findall(r'(?<![\w-])--[\w-]+', code):
                assert option in allowed, (page_name(page), code)
                count += 1
    assert count > 100


def test_settings_of_the_pages_exist():
    sections = {name.partition('.')[0] for name, _, _ in settings() if '.' in name}
    names = {name for name, _, _ in settings()}
    count = 0
    for page in PAGES:
        for code in inline_code(page):
            match = re.fullmatch(r'(\w+)\.(\w+)(?:\.\w+)?(=\S+)?', code)
            if not match or match[1] not in sections:
                continue
            count += 1
            if match[3]:
                Recipe.load('', [code])
            else:
                assert code in names, (page_name(page), code)
    assert count > 60


def test_names_of_the_pages_exist():
    found = {
        name
        for page in PAGES
        for name in re.findall(r'(?<![\w./-])bvtam(?:\.[A-Za-z_]\w*)+', page.read_text())
    }
    assert len(found) > 40
    for name in found:
        pkgutil.resolve_name(name)


def test_files_of_the_pages_exist():
    count = 0
    for page in PAGES:
        text = page.read_text()
        for path in re.findall(r'(?<![\w/.-])(?:bvtam|tests|benchmarks|docs|\.ci)/[\w/.-]+', text):
            if path != 'bvtam/zoo/':  # of a wheel
                assert (ROOT / path.rstrip('.')).exists(), (page_name(page), path)
                count += 1
        for name in re.findall(r'`(test_\w+\.py)`', text):
            assert [*(ROOT / 'tests').rglob(name)], (page_name(page), name)
        for link in re.findall(r'\]\((?!https?:|#|mailto:)([^)#]+)', text):
            assert (page.parent / link).exists(), (page_name(page), link)
            count += 1
    assert count > 150


def test_every_page_is_in_the_navigation():
    text = (ROOT / 'mkdocs.yml').read_text()
    pages = [*(ROOT / 'docs').rglob('*.md'), *(ROOT / 'docs').rglob('*.ipynb')]
    assert sorted(re.findall(r': ([\w/]+\.(?:md|ipynb))$', text, re.M)) == sorted(
        page.relative_to(ROOT / 'docs').as_posix() for page in pages
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with the files that the examples read."""
    sample = ROOT / 'bvtam/assets/sample.mp4'
    names = (
        'my_video.mp4 match.mp4 a.mp4 b.mkv bvtam/assets/sample.mp4 videos/a/1.mp4 videos/b/2.mp4'
    )
    for name in names.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample, tmp_path / name)
    (tmp_path / 'somethingv2.csv').write_text('video,label\nmy_video.mp4,right\na.mp4,left\n')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize('page', [p for p in PAGES if blocks(p, 'python')], ids=page_name)
def test_python_of_a_page_runs(page, folder):
    if page.stem == 'embeddings':
        bvtam.extract(bvtam.create_model('bvtam_tiny_8x2', pretrained=True), ['a.mp4'], 'features')
    names = {}
    for comment, text in blocks(page, 'python'):
        code = compile(text, page_name(page), 'exec')
        if not comment:
            exec(code, names)


@pytest.mark.timeout(440)
@pytest.mark.parametrize(
    'name',
    [
        'predict',
        'embeddings',
        *(pytest.param(n, marks=pytest.mark.slow) for n in ('../quickstart', 'prepare', 'export')),
    ],
)
def test_commands_of_a_page_run(name, folder, capfd):
    lines = list(command_lines(ROOT / f'docs/guides/{name}.md'))
    assert len(lines) > 1
    for arguments in lines:
        code, _, errors = run(capfd, *arguments)
        assert code == 0, (arguments, errors)


@pytest.mark.slow
def test_notebooks_run(docs_module):
    pytest.importorskip('nbclient', reason="notebooks need pip install '.[docs]'")
    notebooks = docs_module('notebooks')
    for path in notebooks.NOTEBOOKS:
        assert str(ROOT) not in path.read_text()
        cells = notebooks.run(path).cells
        texts = ''.join(out.get('text', '') for cell in cells for out in cell.get('outputs', ()))
        assert 'backwards             left' in texts
        assert float(re.findall(r'epoch 2: ([\d.]+) %', texts)[0]) > 40
