"""The study of the paper's claims: its runs are well-formed, and start from nothing that knows of time."""

import pytest
import torch

import bvtam


@pytest.fixture
def claims(benchmark):
    return benchmark('claims')


def test_every_run_has_a_recipe_and_a_part(claims, tmp_path):
    for name, run in claims.RUNS.items():
        recipe = run.recipe(1, tmp_path)
        assert recipe.model == run.model and recipe.model_options == run.options, name
        assert set(run.parts.split()) <= set(claims.PARTS)
        assert run.start in ('', claims.OURS, *claims.RUNS)


@pytest.mark.parametrize('temporal', ['tam', 'tsm', 'none'])
def test_the_start_knows_single_frames_alone(claims, temporal):
    ours = bvtam.create_model(claims.OURS, pretrained=True).state_dict()
    torch.manual_seed(1)
    net = bvtam.create_model('bvtam_tiny_8x2', num_classes=28, temporal=temporal)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    claims.start_spatial(net)
    for name, x in net.state_dict().items():
        new = '.temporal.' in name or name.startswith('fc.')
        assert torch.equal(x, before[name] if new else ours[name]), name


def test_mean_and_deviation_over_seeds(claims):
    results = [
        {'run': 'tam', 'top1': top1, 'families': {'order': {'top1': 2 * top1}}}
        for top1 in (40.0, 44.0)
    ]
    assert claims.spread(results, 'tam', 'order') == pytest.approx((84, 32**0.5, 2))
    assert claims.spread(results[:1], 'tam') == (40.0, 0.0, 1)
    assert claims.spread(results, 'none') is None
