"""One model for many threads: what asks it leaves it alone, whatever the others do."""

import copy
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

import bvtam
from bvtam.inference.eval_mode import evaluating

THREADS, ANSWERS = 8, 24


def small(net):
    """The net as it is created, in training mode, for small clips."""
    net.clip_config = replace(net.clip_config, num_frames=4, resize=32, crop_size=32)
    return net


TINY = partial(bvtam.create_model, 'bvtam_tiny_8x2', drop_rate=0.5)
NETS = {
    'bLVNet': lambda: small(TINY()),
    'TSM': lambda: small(bvtam.temporal_model('resnet18', 'tsm', num_classes=5, drop_rate=0.5)),
    'generic': lambda: small(bvtam.temporal_model('mobilenetv3_small_050', 'tsm', num_classes=5)),
    'optimised': lambda: bvtam.optimize(small(TINY()).eval()),
}


def state(net):
    return (
        {name: tensor.clone() for name, tensor in net.state_dict().items()},
        {name: module.training for name, module in net.named_modules()},
    )


def same(one, other):
    tensors = all(torch.equal(one[0][name], other[0][name]) for name in one[0] | other[0])
    return tensors and one[1] == other[1]


@pytest.mark.parametrize('kind', NETS)
def test_threads_get_the_answers_of_one_and_the_model_is_as_it_came(kind):
    net = NETS[kind]()
    if kind != 'optimised':
        list(net.modules())[3].eval()  # each module has its own flag
    videos = [torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8) for _ in range(3)]
    before = state(net)
    alone = [bvtam.predict(net, video)['top'] for video in videos]
    assert same(state(net), before)
    start = threading.Barrier(THREADS)

    def ask(thread):
        start.wait()
        turns = [(thread + i) % 3 for i in range(ANSWERS // THREADS)]
        return [bvtam.predict(net, videos[i])['top'] == alone[i] for i in turns]

    with ThreadPoolExecutor(THREADS) as pool:
        right = [answer for answers in pool.map(ask, range(THREADS)) for answer in answers]
    assert len(right) == ANSWERS and all(right)
    assert same(state(net), before)


class Parts(nn.Module):
    """Modules that are reached in all the ways that are no submodule."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.drop = nn.Dropout(0.5)
        self.listed = [self.norm, {'drop': self.drop}]
        self.bound = self.inner
        self.part = partial(self.apply_to, self.norm)
        self.holder = Holder(self.norm)
        self.calls, self.clip_config = [], None

    def inner(self, x):
        return self.drop(self.norm(x))

    @staticmethod
    def apply_to(module, x):
        return module(x)

    def forward(self, x):
        self.calls.append(self.training)
        x = self.listed[1]['drop'](self.listed[0](x)) + self.bound(x)
        return x + self.part(x) + self.holder.run(x)


class Holder:
    __slots__ = ('module',)

    def __init__(self, module):
        self.module = module

    def run(self, x):
        return self.module(x)


def test_modules_are_in_eval_mode_however_they_are_reached():
    net = Parts()
    net.norm.running_mean += 3
    x, before = torch.randn(5, 3), state(net)
    with evaluating(net) as view:
        found = view(x)
    assert same(state(net), before) and not net.calls
    assert view.calls == [False]
    with torch.no_grad():
        assert torch.equal(found, net.eval()(x))


def doubled(module, forward, x):
    assert not (forward.__self__.training or module.training) or torch.is_grad_enabled()
    return forward(x) * 2


@pytest.mark.parametrize(
    'leads',
    [
        lambda module: lambda x: module(x),
        weakref.ref,
        lambda module: lambda x, of=module.forward: of(x),
    ],
    ids=['closure', 'weak reference', 'default'],
)
def test_a_module_reached_where_no_copy_follows_is_told(leads):
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    net.other = leads(net[1])
    with (
        pytest.raises(bvtam.BvtamError, match=r"'other' refers .* call model\.eval\(\) first"),
        evaluating(net),
    ):
        pass


class Watch:
    """A hook with a state of its own, which a copy of the hook would not share."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, module, args, out):
        self.seen.append(module.training)


def test_a_view_shares_weights_and_hooks_and_keeps_nothing():
    net, seen = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)), []
    hook = net[0].register_forward_hook(Watch(seen))
    net.forward = partial(doubled, net, net.forward)  # as accelerate does
    optimizer, x = torch.optim.SGD(net.parameters(), 0.1), torch.randn(4, 3)
    for _ in range(2):
        with evaluating(net) as view:
            assert torch.equal(view(x), 2 * nn.functional.linear(x, net[0].weight, net[0].bias))
        assert seen.pop() is False
        net(x).sum().backward()
        optimizer.step()
        assert seen.pop() is True
    hook.remove()
    with evaluating(net) as view:
        view(x)
    assert not seen and net.training


class Caching(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.cache = {}
        self.register_buffer('table', None)

    def forward(self, x):
        if 'scale' not in self.cache:
            self.cache['scale'], self.table = torch.ones(3) * 2, torch.ones(3) * 3
        table = torch.ones(3) * 3 if self.table is None else self.table
        return x * self.weight * self.cache['scale'] * table


@pytest.mark.parametrize('mode', [True, False])
def test_what_a_module_keeps_from_an_evaluation_can_be_trained_with(mode):
    net, x = Caching().train(mode), torch.ones(1, 3)
    with evaluating(net) as view:
        view(x)
    net.train()(x).sum().backward()
    assert net.weight.grad.tolist() == [6.0] * 3


class Merging(nn.Module):
    """An adapter that is merged into the weight in eval mode, as peers have it."""

    def __init__(self):
        super().__init__()
        self.weight, self.more = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

    def train(self, mode=True):
        if self.training and not mode:
            self.weight.data += self.more.data
        return super().train(mode)

    def forward(self, x):
        return x * (self.weight + self.more if self.training else self.weight)


def test_a_model_that_changes_its_weights_for_eval_mode_is_left_alone():
    net = nn.Sequential(Merging(), nn.Dropout(0.5))
    with evaluating(net) as view:
        assert view(torch.ones(1, 3)).tolist() == [[2.0] * 3]
    assert net[0].weight.tolist() == [1.0] * 3 and net[0].training


def test_a_compiled_model_in_training_mode_runs_as_it_was_written():
    net = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5))
    x, runs = torch.randn(2, 3), []

    def backend(graph, inputs):
        runs.append(graph)
        return graph.forward

    plain = nn.functional.linear(x, net[0].weight, net[0].bias)
    for compiled in (torch.compile(net, backend=backend), nn.Sequential(net)):
        if not hasattr(compiled, '_orig_mod'):
            compiled.compile(backend=backend)
        with evaluating(compiled) as view:
            assert torch.equal(view(x), plain)
        assert net.training and net[1].training and not runs


@pytest.mark.filterwarnings('ignore:.*torch.jit:FutureWarning')
def test_of_torchscript_in_training_mode_there_is_no_view():
    net = torch.jit.trace(nn.Sequential(nn.Linear(3, 3)), torch.ones(1, 3))
    with (
        pytest.raises(bvtam.BvtamError, match=r'TorchScript\): call model\.eval\(\) first'),
        evaluating(net.train()),
    ):
        pass
    with evaluating(net.eval()) as same_net:
        assert same_net is net


def test_another_device_is_for_the_view_alone():
    net = nn.Sequential(nn.GRU(3, 3), nn.ReLU())
    with evaluating(net.eval(), torch.device('meta')) as view:
        assert {p.device.type for p in view.parameters()} == {'meta'}
    assert {p.device.type for p in net.parameters()} == {'cpu'}
    assert net[0].weight_hh_l0 is net[0]._flat_weights[1]


# ---- other processes, and the end of one ----


def run(program, *args, timeout=120):
    """What a program of its own prints on stderr, and its exit status."""
    done = subprocess.run(
        [sys.executable, '-c', textwrap.dedent(program), *args],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def test_results_left_open_at_the_end_of_a_program_end_it_quietly():
    program = """
        import torch, bvtam
        from bvtam.inference.stream import predict_stream
        from bvtam.inference.windows import windows_many

        net = bvtam.create_model('bvtam_tiny_8x2').eval()
        net.clip_config = bvtam.ClipConfig(num_frames=4, resize=32, crop_size=32)
        sample = bvtam.__path__[0] + '/assets/sample.mp4'
        left = [
            bvtam.predict_many(net, [sample] * 20, workers=2),
            windows_many(net, [sample] * 3, 0.5),
            predict_stream(net, sample),
            bvtam.open_video(sample).play(),
        ]
        print(len([next(results) for results in left]))
    """
    assert run(program) == (0, '4\n', '')


@pytest.mark.parametrize('kind', ['bLVNet', 'generic'])
def test_an_optimised_net_can_be_pickled(kind, tmp_path):
    net, clip = bvtam.optimize(NETS[kind]().eval()), torch.randn(1, 3, 4, 32, 32)
    torch.save(net, tmp_path / 'net.pt')
    for again in (
        pickle.loads(pickle.dumps(net)),
        copy.deepcopy(net),
        torch.load(tmp_path / 'net.pt', weights_only=False),
    ):
        assert torch.equal(again(clip), net(clip))
        assert again.optimized and not any(module.training for module in again.modules())
    if kind != 'bLVNet':
        return  # one process is enough
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        assert torch.allclose(pool.apply(net, (clip,)), net(clip), rtol=1e-4, atol=1e-6)


def test_dir_lists_what_is_loaded_on_first_use():
    assert set(bvtam.__all__) <= set(dir(bvtam))


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='there is no fork')
def test_a_forked_process_predicts_with_the_threads_that_it_has():
    program = """
        import os, signal, torch
        torch.set_num_threads(3)
        import bvtam

        net = bvtam.create_model('bvtam_tiny_8x2')
        net.clip_config = bvtam.ClipConfig(num_frames=4, resize=64, crop_size=64)
        video = torch.zeros(6, 3, 80, 80, dtype=torch.uint8)
        pid = os.fork()
        if not pid:
            signal.alarm(60)
            bvtam.predict(net, video)
            os._exit(0)
        print(os.waitpid(pid, 0)[1], torch.get_num_threads())
    """
    assert run(program)[:2] == (0, '0 3\n')


@pytest.mark.slow
@pytest.mark.skipif(
    'forkserver' not in multiprocessing.get_all_start_methods(), reason='there is no fork server'
)
def test_a_fork_server_imports_once_for_all_workers(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        textwrap.dedent("""
            import multiprocessing, sys
            import torch
            from torch.utils.data import Dataset

            class Clips(Dataset):
                def __len__(self):
                    return 4

                def __getitem__(self, index):
                    name = 'before' if BEFORE else 'after'
                    clip = torch.zeros(3, 4, 32, 32)
                    return {'clip': clip, 'label': 0, 'index': 0, 'video': name, 'failed': []}

            # As the worker finds it, which comes to this script before it gets its data set.
            BEFORE = 'bvtam.engine.distributed' in sys.modules

            if __name__ == '__main__':
                multiprocessing.set_start_method('forkserver')
                import bvtam
                net = bvtam.create_model('bvtam_tiny_8x2')
                from bvtam.data.datasets import collate
                from bvtam.engine.evaluate import _batches
                options = {'batch_size': 2, 'num_workers': 1, 'collate_fn': collate}
                with _batches(Clips(), **options) as batches:
                    print({name for batch in batches for name in batch['video']})
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "{'before'}\n", done.stderr
