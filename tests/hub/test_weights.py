"""From a published name to weights: the table, the cards, downloads by direct link, what is said else."""

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from support import local_hub, textbook
from support.cli import SAMPLE

import bvtam
from bvtam.data.motion.clips import MotionClips
from bvtam.deploy.flops import flops
from bvtam.engine.evaluate_motion import evaluate_motion
from bvtam.engine.recipe import Recipe
from bvtam.engine.setup import build_model
from bvtam.errors import BvtamError
from bvtam.hub import cards, download
from bvtam.hub.push import push_folder
from bvtam.weights import resolve, table, zoo

ROOT = Path(__file__).parents[2]

NAME = 'bvtam_r50_8x2.ssv1_ibm'


def release_file(path):
    """A small checkpoint in the layout of IBM/bLVNet-TAM, and the model that it is of."""
    torch.manual_seed(1)
    model = textbook.BLVNet(blocks=(2, 2, 2, 2), width=16, num_classes=4, num_frames=16)
    for name, tensor in model.state_dict().items():
        if name.endswith('bn3.weight'):
            tensor.fill_(0.5)
    torch.save({f'baseline_model.{n}': t for n, t in model.state_dict().items()}, path)
    return model.eval()


def list_only(entry, monkeypatch):
    """Makes it the only entry of the table."""
    for module in ('weights.resolve', 'hub.convert'):
        monkeypatch.setattr(f'bvtam.{module}.entries', lambda: {entry.name: entry})


@pytest.fixture
def served(hub, tmp_path, monkeypatch):
    """(hub, model, entry): a server that offers a release file, and a table that has it by a link."""
    model = release_file(tmp_path / 'release.pth')
    hub.files['/weights/release.pth'] = (tmp_path / 'release.pth').read_bytes()
    entry = replace(
        table.entries()[NAME],
        name='bvtam_tiny_8x2.test',
        num_classes=4,
        url=f'{hub.url}/weights/release.pth',
        page='',
        file='release.pth',
        clip={'resize': 256},
    )
    list_only(entry, monkeypatch)
    return hub, model, entry


def test_table():
    found = table.entries()
    assert sum(not entry.ships for entry in found.values()) == 28
    for name, entry in found.items():
        assert entry.arch in bvtam.list_models(), name
        assert entry.ships or bool(entry.url) != bool(entry.page), name
        assert entry.metrics and entry.licence in ('apache-2.0', 'mit'), name
        where = 'download' if entry.url else 'convert by hand'
        assert resolve.where(name) == ('here' if entry.ships else where)
    assert set(found) <= set(bvtam.list_pretrained())


@pytest.mark.skipif(not (ROOT / 'zoo').is_dir(), reason='the zoo lies elsewhere in a wheel')
def test_cards_are_not_stale(tmp_path):
    for name, entry in table.entries().items():
        cards.write_folder(entry, tmp_path / name)
        for file in (zoo.CARD,) if entry.ships else (zoo.CONFIG, zoo.CARD):
            assert (ROOT / 'zoo' / name / file).read_text() == (
                tmp_path / name / file
            ).read_text(), name


def test_costs_in_the_table_are_counted():
    for name in ('blresnet50.in1k_ibm', 'tsm_resnet50_f8.ssv1_mit', NAME):
        entry = table.entries()[name]
        clip = cards.published_model(entry).clip_config
        size = (clip.num_frames, clip.crop_size) if clip else (None, None)
        counted = flops(entry.arch, *size, entry.num_classes)
        assert entry.costs == {key: counted[key] for key in ('params', 'conv_macs')}


def test_web_pages_are_explained():
    for create in (bvtam.create_model, timm.create_model):
        with pytest.raises(BvtamError) as caught:
            create(NAME, pretrained=True)
        text = str(caught.value)
        assert 'https://ibm.box.com/v/st2stv1-bLVNet-TAM-50-f8x2' in text
        assert f'bvtam convert st2stv1-bLVNet-TAM-50-f8x2.pth --name {NAME}' in text
    with pytest.raises(
        BvtamError, match=r'known are bvtam_r50_8x2.motion, bvtam_r50_8x2.ssv1_ibm, '
    ):
        bvtam.create_model('bvtam_r50_8x2.nothing', pretrained=True)


def test_a_name_without_its_weights_downloads_nothing(monkeypatch):
    monkeypatch.setattr(resolve, 'downloader', None)
    for name in ('tsm_resnet50_f8.k400_dense_mit', NAME):
        entry = table.entries()[name]
        model = bvtam.create_model(name)
        assert model.num_classes == entry.num_classes
        assert model.clip_config == cards.published_model(entry).clip_config
        assert flops(name, 2, 32)['params'] == entry.costs['params']
    assert bvtam.create_model(NAME, num_classes=5).num_classes == 5
    with pytest.raises(BvtamError, match='pretrained=False without the tag'):
        bvtam.create_model('bvtam_r50_8x2.nothing')
    chosen = Recipe.load('', [f'model={NAME}', 'init=auto'])
    assert build_model(chosen, None, 3).num_classes == 3


def test_only_models_of_the_zoo_are_saved(tmp_path):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    folder = bvtam.save_pretrained(torch.compile(model, backend='eager'), tmp_path / 'model')
    saved = bvtam.create_model(f'local-dir:{folder}', pretrained=True).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())
    with pytest.raises(BvtamError, match='FeatureGetterNet is no model as create_model gives it'):
        features = bvtam.create_model('bvtam_tiny_8x2', features_only=True)
        bvtam.save_pretrained(features, tmp_path / 'features')
    assert not (tmp_path / 'features').exists()


@torch.no_grad()
def test_download_converts_once(served):
    hub, book, entry = served
    model = bvtam.create_model(entry.name, pretrained=True).eval()
    x = torch.randn(1, 3, 16, 32, 32)
    torch.testing.assert_close(model(x), book(x), rtol=1e-4, atol=1e-5)
    assert model.clip_config.resize == 256 and model.clip_config.num_frames == 16
    for name in (entry.name, 'bvtam_tiny_8x2'):
        assert torch.equal(timm.create_model(name, pretrained=True).eval()(x), model(x))
    assert len(hub.seen('release.pth', 'GET')) == 1
    assert resolve.where(entry.name) == 'cache'
    assert bvtam.verify(entry.name)['golden_error'] < 1e-5


@pytest.mark.parametrize('resumable', [True, False])
def test_a_cut_transfer_goes_on_or_starts_anew(served, resumable, monkeypatch):
    hub, _, entry = served
    monkeypatch.setattr('huggingface_hub.file_download.time.sleep', lambda seconds: None)
    if not resumable:
        hub.fault('no_range', 'release.pth')
    hub.cut('release.pth', share=0.5)
    bvtam.create_model(entry.name, pretrained=True)
    assert len(hub.seen('release.pth', 'GET')) == 2


def test_a_transfer_that_never_ends_leaves_nothing_to_load(served, monkeypatch):
    hub, _, entry = served
    monkeypatch.setattr('huggingface_hub.file_download.time.sleep', lambda seconds: None)
    hub.fail('release.pth', 404, times=1)
    with pytest.raises(BvtamError, match='answers 404'):
        bvtam.create_model(entry.name, pretrained=True)
    assert resolve.where(entry.name) == 'download'
    assert not (resolve.cache_dir() / 'downloads' / 'release.pth').exists()
    bvtam.create_model(entry.name, pretrained=True)  # once the server has recovered


def test_wrong_hash_is_refused(served, monkeypatch):
    _, _, entry = served
    pinned = replace(entry, sha256='0' * 64)
    with pytest.raises(
        BvtamError, match=rf'release.pth gave a file with SHA-256 .* not {"0" * 64}'
    ):
        download.fetch(pinned)
    assert resolve.where(entry.name) == 'download'
    folder = download.fetch(entry)
    weights = folder / zoo.WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(BvtamError, match=r'model.safetensors has SHA-256 .*, not'):
        bvtam.create_model(entry.name, pretrained=True)


def test_a_second_download_must_be_as_the_first(served):
    hub, _, entry = served
    folder = download.fetch(entry)
    shutil.rmtree(folder)
    (resolve.cache_dir() / 'downloads' / entry.file).unlink()
    content, hub.files['/weights/release.pth'] = hub.files['/weights/release.pth'], b'another'
    with pytest.raises(BvtamError, match='as the first time'):
        download.fetch(entry)
    hub.files['/weights/release.pth'] = content
    assert download.fetch(entry) == folder


def test_offline_is_said(served, monkeypatch):
    _, _, entry = served
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    with pytest.raises(BvtamError, match='HF_HUB_OFFLINE'):
        bvtam.create_model(entry.name, pretrained=True)


def test_eight_processes_download_once(served):
    hub, _, entry = served
    hub.slow('release.pth', 4_000_000)
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['bvtam.hub.download'])  # imported once, not eight times
    with context.Pool(8, local_hub.join, (os.environ['TORCH_HOME'],)) as pool:
        folders = pool.map(download.fetch, [entry] * 8)
    assert len(set(folders)) == 1
    assert len(hub.seen('release.pth', 'GET')) == 1
    assert bvtam.create_model(entry.name, pretrained=True).num_classes == 4


@torch.no_grad()
@pytest.mark.parametrize('name', ['bvtam_tiny_8x2', 'tsm_resnet50_f8', 'blresnet50'])
def test_through_the_hub_and_back(name, hub):
    model = bvtam.create_model(name, num_classes=3).eval()
    model.label_names = ['left', 'right', 'up']
    x = torch.randn((1, 3, 64, 64) if model.input_kind == 'image' else (1, 3, 4, 64, 64))
    assert 'alice/model' in bvtam.push_to_hub(model, 'alice/model')
    for create in (bvtam.create_model, timm.create_model):
        again = create('hf-hub:alice/model', pretrained=True).eval()
        assert torch.equal(again(x), model(x))
        assert again.label_names == model.label_names
        assert again.clip_config == model.clip_config
    adapted = bvtam.create_model(
        'hf-hub:alice/model@main', pretrained=True, num_classes=5, in_chans=10
    )
    assert adapted.num_classes == 5 and adapted.in_chans == 10 and adapted.label_names is None


def test_push_to_a_branch_and_as_a_pull_request(hub):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    bvtam.push_to_hub(model, 'alice/model', private=True, revision='dev')
    assert hub.repos['alice/model'].private
    assert bvtam.create_model('hf-hub:alice/model@dev', pretrained=True).num_classes == 3
    with pytest.raises(BvtamError, match='has no config.json'):
        bvtam.create_model('hf-hub:alice/model', pretrained=True)  # nothing on the main branch
    assert 'discussions/1' in bvtam.push_to_hub(model, 'alice/model', create_pr=True)
    name = 'hf-hub:alice/model@refs/pr/1'
    assert bvtam.create_model(name, pretrained=True).num_classes == 3


def test_a_lost_connection_is_said_in_one_line(monkeypatch):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    with local_hub.LocalHub() as hub:
        hub.add_user('alice', 'hf_alice')
        hub.patch(monkeypatch)
        bvtam.push_to_hub(model, 'alice/model')
        hub.cut('model.safetensors', reset=True)
        with pytest.raises(BvtamError, match='the Hub cannot be reached'):
            bvtam.create_model('hf-hub:alice/model', pretrained=True)
        assert bvtam.create_model('hf-hub:alice/model', pretrained=True).num_classes == 3
    with pytest.raises(BvtamError, match='alice/other: the Hub cannot be reached'):  # it is gone
        bvtam.push_to_hub(model, 'alice/other')


def test_push_to_a_hub_without_xet(hub, monkeypatch, caplog):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', False)
    bvtam.push_to_hub(model, 'alice/model')  # as most people's client is set
    # it was known before the client had tried for minutes
    assert 'by Xet it failed' not in caplog.text
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_DISABLE_XET', True)
    assert bvtam.create_model('hf-hub:alice/model', pretrained=True).num_classes == 3
    sent = hub.repos['alice/model'].commits[hub.repos['alice/model'].refs['main']]
    assert {'config.json', 'model.safetensors', 'SHA256SUMS'} <= set(sent)


def test_what_the_hub_refuses_is_said_in_one_line(hub, tmp_path, monkeypatch):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    folder = bvtam.save_pretrained(model, tmp_path / 'model')
    files = {p.name: p.read_bytes() for p in folder.iterdir()}
    hub.add_user('bob', 'hf_bob')
    hub.add_repo('bob/secret', files, private=True)
    hub.add_repo('bob/gated', files, gated=True)
    hub.add_repo('bob/model', files)
    hub.add_repo('bob/pickle', {'config.json': files['config.json'], 'pytorch_model.bin': b'x'})
    for repo, words in (
        ('bob/secret', 'not there, or private'),
        ('bob/nothing', 'not there, or private'),
        ('bob/gated', 'is gated'),
        ('bob/model@nowhere', "no revision 'nowhere'"),
        ('bob/pickle', 'allow_pickle=True'),
        ('not a repo', 'no name of a repo'),
    ):
        with pytest.raises(BvtamError, match=words) as caught:
            bvtam.create_model(f'hf-hub:{repo}', pretrained=True)
        assert '\n' not in str(caught.value) and repo in str(caught.value)
    with pytest.raises(BvtamError, match='may not write|403'):
        bvtam.push_to_hub(model, 'bob/model')
    assert bvtam.create_model('hf-hub:bob/model', pretrained=True).num_classes == 3
    hub.add_repo('bob/flipped', files)
    hub.fault('flip', 'flipped')  # the client compares sizes alone
    with pytest.raises(BvtamError, match='has SHA-256|is not JSON'):
        bvtam.create_model('hf-hub:bob/flipped', pretrained=True)
    hub.patch(monkeypatch, token='hf_wrong')
    with pytest.raises(BvtamError, match='token may be wrong'):
        bvtam.create_model('hf-hub:bob/model', pretrained=True)


def test_verify_finds_what_changed(tmp_path):
    model = bvtam.create_model('bvtam_tiny_8x2', num_classes=3)
    folder = bvtam.save_pretrained(model, tmp_path / 'model')
    assert bvtam.verify(str(folder))['hashes'] == 2
    config = json.loads((folder / 'config.json').read_text())
    config['model_args']['beta'] = 1  # the same shapes are not to be had with it
    (folder / 'config.json').write_text(json.dumps(config))
    assert bvtam.verify(str(folder))['golden_error'] < 1e-6  # here beta changes nothing
    (folder / zoo.GOLDEN).write_bytes(b'')
    with pytest.raises(BvtamError, match='golden.safetensors has SHA-256'):
        bvtam.verify(str(folder))
    (folder / zoo.SUMS).unlink()
    with pytest.raises(BvtamError, match='SHA256SUMS is missing'):
        bvtam.verify(str(folder))


# ---- weights that ship, and files that two names share ----


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """bvtam_r50_8x2.own and bvtam_r50_16x2.own: one file, two ClipConfigs."""
    small = {'width': 16, 'layers': (2, 2, 2, 2), 'num_classes': 3}
    for frames, owner in ((8, ''), (16, 'bvtam_r50_8x2.own')):
        torch.manual_seed(0)
        model = bvtam.create_model(f'bvtam_r50_{frames}x2', **small)
        folder = bvtam.save_pretrained(model, tmp_path / f'bvtam_r50_{frames}x2.own', half=True)
        if owner:
            cards.write_config(model, folder / zoo.CONFIG, weights=owner)
            (folder / zoo.WEIGHTS).unlink()
    monkeypatch.setenv('BVTAM_ZOO', str(tmp_path))
    return tmp_path


def test_two_names_share_a_file(shared, hub):
    short, long = (bvtam.create_model(f'bvtam_r50_{k}x2.own', pretrained=True) for k in (8, 16))
    assert (short.clip_config.num_frames, long.clip_config.num_frames) == (16, 32)
    for name, value in short.state_dict().items():
        assert torch.equal(value, long.state_dict()[name]), name
    assert torch.equal(short.layer4[0].conv2.weight, short.layer4[0].conv2.weight.half().float())
    for name in ('bvtam_r50_8x2.own', 'bvtam_r50_16x2.own'):
        assert resolve.where(name) == 'here'
        assert bvtam.verify(name)['golden_error'] < 1e-5
    timm.create_model('bvtam_r50_16x2.own', pretrained=True)
    push_folder(shared / 'bvtam_r50_16x2.own', 'alice/long')
    again = bvtam.create_model('hf-hub:alice/long', pretrained=True)
    assert again.clip_config.num_frames == 32
    assert torch.equal(again.fc.weight, long.fc.weight)


def test_a_shared_file_that_is_not_there_or_not_beside(shared):
    path = shared / 'bvtam_r50_16x2.own' / zoo.CONFIG
    good = path.read_text()
    for name in ('../bvtam_r50_8x2.own', '..', '', 3, str(shared / 'bvtam_r50_8x2.own')):
        path.write_text(json.dumps(json.loads(good) | {'weights': name}))
        with pytest.raises((BvtamError, FileNotFoundError)):
            bvtam.create_model(f'local-dir:{path.parent}', pretrained=True)
    path.write_text(good.replace('bvtam_r50_8x2.own', 'bvtam_r50_8x2.gone'))
    with pytest.raises(FileNotFoundError, match='bvtam_r50_8x2.gone'):
        bvtam.create_model(f'local-dir:{path.parent}', pretrained=True)
    with pytest.raises(BvtamError, match='no weights named bvtam_r50_16x2.own'):
        bvtam.create_model('bvtam_r50_16x2.own', pretrained=True)
    weights = shared / 'bvtam_r50_8x2.own' / zoo.WEIGHTS
    path.write_text(good)
    weights.write_bytes(weights.read_bytes()[:-1] + b'x')
    with pytest.raises(BvtamError, match='has SHA-256'):
        bvtam.create_model('bvtam_r50_16x2.own', pretrained=True)


SHIPPED = [name for name, entry in table.entries().items() if entry.ships]


@pytest.mark.parametrize('name', SHIPPED)
def test_weights_that_ship(name):
    """They are whole, the default of their architecture, and give the logits that they came with."""
    arch, _, tag = name.partition('.')
    assert tag == 'motion' and bvtam.verify(name)['golden_error'] < 1e-4
    folder = resolve.find(arch)
    assert folder == resolve.find(arch, tag)
    assert folder.parent == resolve.roots()[-1]
    model = bvtam.create_model(arch, pretrained=True)
    entry = table.entries()[name]
    assert model.label_names == MotionClips(family='all').label_names
    assert model.clip_config.num_frames == 2 * int(arch.split('_')[-1].removesuffix('x2'))
    for metric in entry.metrics:
        assert metric['command'].startswith(f'bvtam eval {name} --data motion')


def test_without_network_the_default_is_a_feature_extractor(monkeypatch):
    monkeypatch.setattr('socket.socket.connect', lambda *_: pytest.fail('no network'))
    model = bvtam.create_model(pretrained=True, num_classes=0).eval()
    with torch.no_grad():
        assert model(torch.randn(1, 3, 16, 64, 64)).shape == (1, 2048)


@pytest.mark.parametrize('name', SHIPPED)
def test_weights_that_ship_know_motion(name):
    result = evaluate_motion(
        bvtam.create_model(name, pretrained=True).eval(), 56, seed=2, workers=0
    )
    published = table.entries()[name].metrics[0]['top1']
    assert result['top1'] > published - 15  # of 56 clips: three standard deviations


def test_the_sample_clip_is_named(monkeypatch):
    model = bvtam.create_model(pretrained=True).eval()
    assert bvtam.predict(model, SAMPLE)['top'][0]['label'] == 'right'


def test_an_installation_without_its_weights_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(resolve, 'roots', lambda: [tmp_path])
    with pytest.raises(
        BvtamError, match='bvtam_r50_8x2.motion are missing in .*: install bvtam again'
    ):
        bvtam.create_model(pretrained=True)
