"""Recipes: what is read, what is refused, and that those which ship are whole."""

from __future__ import annotations

import pytest
import yaml

from bvtam.engine.recipe import RECIPES, Recipe, list_recipes, settings
from bvtam.errors import BvtamError
from bvtam.factory import list_models


def test_every_setting_is_explained_and_has_its_default():
    rows = settings()
    assert len(rows) > 40 and all(len(text) > 5 for _, _, text in rows)
    values = Recipe().to_dict()
    for name, default, _ in rows:
        found = values
        for part in name.split('.'):
            found = found[part]
        assert found == default


def test_yaml_and_dict_are_read_back():
    recipe = Recipe.load('', ['lr=1e-3', 'clip.num_frames=8', 'model_options.width=8', 'flip=on'])
    assert recipe.optimizer.lr == 1e-3 and recipe.augment.flip == 'on'
    assert recipe.clip == {'num_frames': 8} and recipe.model_options == {'width': 8}
    assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())) == recipe
    assert Recipe.load('', ['data.path=2024', 'init=']).data.path == '2024'


def test_a_file_is_a_recipe_and_overrides_win(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('model: bvtam_tiny_8x2\noptimizer: {lr: 1e-2}\nschedule: {epochs: 7}\n')
    recipe = Recipe.load(path, ['epochs=3', 'optimizer.momentum=0.8'])
    assert (recipe.model, recipe.optimizer.lr) == ('bvtam_tiny_8x2', 0.01)
    assert (recipe.schedule.epochs, recipe.optimizer.momentum) == (3, 0.8)


@pytest.mark.parametrize(
    'pair, message',
    [
        ('lrr=1', "unknown setting 'lrr'; did you mean lr"),
        ('optimizer.lrr=1', "unknown setting 'optimizer.lrr'; did you mean optimizer.lr"),
        ('name=sgd', "unknown setting 'name': optimizer.name or schedule.name"),
        ('epochs=0', 'schedule.epochs must be from 1 to 100000, not 0'),
        ('epochs=2.5', 'schedule.epochs must be a whole number, not 2.5'),
        ('lr=fast', "optimizer.lr must be a number, not 'fast'"),
        ('lr=.nan', 'optimizer.lr must be from 0 to'),
        ('compile=perhaps', "run.compile must be true or false, not 'perhaps'"),
        ('flip=sideways', "augment.flip must be one of auto, on, off, not 'sideways'"),
        ('clip.num_frame=3', "unknown clip setting 'num_frame'; did you mean num_frames"),
        ('data.val=x', 'data.val is given without data.train'),
        ('ema=1.0', 'regularize.ema must be from 0 to 0.99999, not 1.0'),
        ('momentum=1', 'optimizer.momentum must be from 0 to 0.99999, not 1.0'),
        ('min_lr=0.1', 'schedule.min_lr 0.1 is above optimizer.lr 0.01'),
        ('class_weight=inverse', 'class_weight must be balanced'),
        ('class_weight=[1, -1]', 'class_weight must be balanced'),
        ('class_weight={a: yes}', 'class_weight must be balanced'),
        ('class_weight=2', 'class_weight must be'),
        ('sampler=random', 'data.sampler must be one of shuffle, balanced'),
        ('lr', "'lr' is no setting: write KEY=VALUE"),
        ('optimizer=3', "unknown setting 'optimizer'"),
    ],
)
def test_a_wrong_override_is_one_line(pair, message):
    with pytest.raises(BvtamError) as caught:
        Recipe.load('', [pair])
    assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'text, message',
    [
        ('optimiser: {lr: 1}', 'unknown setting optimiser; did you mean optimizer'),
        ('optimizer: {learning_rate: 1}', 'unknown setting optimizer.learning_rate'),
        ('lr: 0.1', 'unknown setting lr; did you mean optimizer.lr'),
        ('optimizer: 3', 'optimizer must be a table of settings, not 3'),
        ('- a\n- b', 'a recipe is a table of settings'),
        ('a: [', 'cannot be read as YAML'),
        ('augment: {mixup: 0.1, cutmix: 1}', 'augment.mixup or augment.cutmix, not both'),
        (
            '{data: {sampler: balanced}, regularize: {class_weight: balanced}}',
            'as balanced, not both',
        ),
        ('data: {sampler: balanced, motion: {family: all}}', 'data.sampler is not for data.motion'),
        ('data: {path: a, train: b}', 'data.path, or data.train and data.val, not both'),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / 'wrong.yaml'
    path.write_text(text)
    with pytest.raises(BvtamError) as caught:
        Recipe.load(path)
    assert 'wrong.yaml' in str(caught.value) and message in str(caught.value)
    assert '\n' not in str(caught.value)


def test_a_recipe_that_is_not_there():
    with pytest.raises(BvtamError, match="no recipe is named 'fintune'; did you mean finetune"):
        Recipe.load('fintune')
    with pytest.raises(FileNotFoundError, match=r'nowhere\.yaml: no such recipe'):
        Recipe.load('nowhere.yaml')


# FACTS of the paper's release: epochs, learning rate and schedule of the two stages.
PUBLISHED = {
    'ssv1': (174, 50, 0.01, 'cosine'),
    'ssv2': (174, 50, 0.01, 'cosine'),
    'k400': (400, 50, 0.01, 'cosine'),
    'moments': (339, 50, 0.01, 'cosine'),
    'ssv1_long': (174, 25, 0.01, 'step'),
    'ssv2_long': (174, 25, 0.01, 'step'),
    'k400_long': (400, 25, 0.005, 'step'),
    'moments_long': (339, 25, 0.005, 'step'),
}


@pytest.mark.parametrize('name', list_recipes())
def test_what_ships(name):
    recipe = Recipe.load(name)
    text = (RECIPES / f'{name}.yaml').read_text()
    assert recipe.model in list_models()
    assert f'bvtam train {name}' in text or (name == 'finetune' and 'bvtam train --data' in text)
    if name in PUBLISHED:
        o, s = recipe.optimizer, recipe.schedule
        assert (recipe.num_classes, s.epochs, o.lr, s.name) == PUBLISHED[name]
        assert (o.name, o.momentum, o.weight_decay, o.decay_all) == ('sgd', 0.9, 5e-4, True)
        assert (recipe.run.batch_size, recipe.model_options) == (64, {'drop_rate': 0.5})
        assert (recipe.augment.crop, recipe.augment.offsets) == ('multi_scale', 'shared')
        if s.name == 'step':
            assert (s.decay_epochs, s.decay_rate) == (10, 0.1)


def test_published_schedules_are_all_there():
    assert set(PUBLISHED) | {'finetune', 'quick', 'image'} <= set(list_recipes())
