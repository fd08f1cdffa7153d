import json
import shutil

import pytest
from support.data_sets import short, touch, write_text

from bvtam import BvtamError
from bvtam.data.load import load_records
from bvtam.data.records import Record


@pytest.fixture
def videos(tmp_path):
    root = tmp_path / 'videos'
    touch(root, 'a.mp4', 'my clip.mp4', 'b/c.avi', '12345/00001.jpg', 'training/x/m.mp4')
    return root


LISTS = [
    # the authors', with a folder that is named by a number and one with a space
    ('12345 1 48 5', [('12345', 5, 1, 48)], None),
    ('12345;2;48;0\n', [('12345', 0, 2, 48)], None),
    ('12345/ 48 5', [('12345', 5, *[None] * 4, 48)], None),
    ('12345;48;jump', [('12345', 0, *[None] * 4, 48)], ['jump']),
    ('a.mp4,5,1', [('a.mp4', 5)], None),  # numbers after commas count no frames
    ('a.mp4 300 2', [('a.mp4', 2)], None),  # the whole file
    ('a.mp4 0\n\nmy clip.mp4 1\n', [('a.mp4', 0), ('my clip.mp4', 1)], None),
    ('a.mp4 run\nb/c.avi Fly', [('a.mp4', 1), ('b/c.avi', 0)], ['Fly', 'run']),
    ('12345;Putting [x], then more\na;Go', [('12345', 1), ('a.mp4', 0)], ['Go', 'Putting [x], then more']),
    ('12345', [('12345', -1)], None),
    ('my clip.mp4;1', [('my clip.mp4', 1)], None),
    ('x/m.mp4,clapping,3,0', [('training/x/m.mp4', 0)], ['clapping']),  # Moments in Time
    ('\ufeffvideo,label\r\n"my clip.mp4",1\r\n', [('my clip.mp4', 1)], None),
    ('video\na.mp4', [('a.mp4', -1)], None),
    ('label,video,first,last\n3,12345,2,9', [('12345', 3, 2, 9)], None),
    ('video,label,start,end\na.mp4,x,1.5,2.5\na.mp4,x,,3', [
        ('a.mp4', 0, None, None, 1.5, 2.5), ('a.mp4', 0, None, None, None, 3.0)], ['x']),
]  # fmt: skip


@pytest.mark.parametrize(('text', 'expected', 'names'), LISTS)
def test_lists(videos, text, expected, names):
    file = write_text(videos / 'lists' / 'list.csv', text)
    records, found = load_records(file, root=videos)
    assert records == [Record(str(videos / source), *rest) for source, *rest in expected]
    assert found == names


def test_paths_start_at_the_list(videos):
    file = write_text(
        videos / 'b' / 'list.txt',
        f'c.avi 0\n../a.mp4 1\n{videos}/my clip.mp4 1\nhttps://x.y/z.mp4 0',
    )
    sources = [record.source for record in load_records(file, urls=True)[0]]
    expected = [str(videos / name) for name in ('b/c.avi', 'a.mp4', 'my clip.mp4')]
    assert sources == [*expected, 'https://x.y/z.mp4']


def test_a_split_column(videos):
    text = 'video,label,split\na.mp4,x,train\nb/c.avi,y,validate\n12345,x,train\n'
    file = write_text(videos / 'list.csv', text)
    train, names = load_records(file, 'train')
    assert short(train, videos) == [('a.mp4', 0), ('12345', 0)] and names == ['x', 'y']
    assert short(load_records(file, 'val')[0], videos) == [('b/c.avi', 1)]
    assert len(load_records(file)[0]) == 3
    with pytest.raises(BvtamError, match="no video of the split 'test'"):
        load_records(file, 'test')


@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize(
    'header',
    ['path label', 'Filename class', 'file label_name', 'video_path class_name', 'video label'],
)
def test_headers_of_other_names(videos, header, sep):
    lines = [f'id {header}', '0 a.mp4 x', '1 b/c.avi y']
    file = write_text(videos / 'list.csv', '\n'.join(line.replace(' ', sep) for line in lines))
    found, names = load_records(file)
    assert short(found, videos) == [('a.mp4', 0), ('b/c.avi', 1)] and names == ['x', 'y']


def test_of_two_columns_the_likelier_counts(videos):
    file = write_text(videos / 'list.csv', 'path,label,class_name,video\nno.mp4,1,x,a.mp4\n')
    assert short(load_records(file)[0], videos) == [('a.mp4', 1)]


def test_several_labels_of_a_video_are_refused(videos):
    for text in ('a.mp4,0|3', 'a.mp4;0,3', 'video,label\na.mp4,"1,2"', 'video,label\na.mp4,0 3 5', 'video,label\na.mp4,"[1, 2]"', 'a.mp4,x\nb/c.avi,y\n12345,x|y'):  # fmt: skip
        file = write_text(videos / 'list.csv', text)
        with pytest.raises(BvtamError, match='names several classes'):
            load_records(file)
    file = write_text(videos / 'list.csv', 'video,label\na.mp4,"sit, then stand"\nb/c.avi,24/7\n')
    assert load_records(file)[1] == ['24/7', 'sit, then stand']
    assert load_records(write_text(file, 'a.mp4,x|y\nb/c.avi,x'), labels=['x', 'y', 'x|y'])[0]


def test_a_part_that_is_missing_gets_a_hint(videos, tmp_path):
    touch(tmp_path / 'set', 'train/x/a.mp4', 'train/x/b.mp4', 'test/x/c.mp4')
    with pytest.raises(BvtamError, match='only test, train; rename test to val, or hold some of'):
        load_records(tmp_path / 'set', 'val')
    file = write_text(videos / 'list.csv', 'video,label,split\na.mp4,x,train\nb/c.avi,x,test\n')
    with pytest.raises(BvtamError, match="split 'val', only of train and test; rename test to val"):
        load_records(file, 'val')
    shutil.rmtree(tmp_path / 'set' / 'test')
    with pytest.raises(BvtamError, match='no folder val, only train; give the part train alone'):
        load_records(tmp_path / 'set', 'val')


def test_numbers_are_indices_unless_all_are_names(videos):
    names = ['0', '1', '10', '2']
    for text, labels in (('a.mp4 2\nb/c.avi 10', [3, 2]), ('a.mp4 2\nb/c.avi 3', [2, 3])):
        records, _ = load_records(write_text(videos / 'list.txt', text), labels=names)
        assert [record.label for record in records] == labels


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('a.mp4 0\nmissing.mp4 1', 'line 2: there is no video .*/missing.mp4'),
        ('12345 1 48 5\n12345 48 5', 'line 2 has 3 columns, but the first line 4'),
        ('12345 1 48 5\na b 48 5', "line 2: frame number must be a number from 0, not 'b'"),
        ('12345 48 1 5', 'line 1: last frame 1 lies before 48'),
        ('a.mp4 1 48 5', 'line 1: first and last .* is a file'),
        ('a.mp4 0\nb/c.avi -1', 'line 2: label -1 is out of range, from 0 up'),
        ('video,label\na.mp4,0\n\na.mp4', 'line 4 has 1 columns, but the header 2: video,label'),
        ('video,label\n,0', 'line 2 names no video'),
        (';0', 'line 1 names no video'),
        ('video,start\na.mp4,x', "line 2: start must be a number from 0, not 'x'"),
        ('video,start\na.mp4,nan', 'line 2: start must be'),
        ('video,start,end\na.mp4,3,2', 'line 2: end 2.0 lies before 3.0'),
        ('video,split\na.mp4,half', "line 2: the split 'half' is none of"),
        ('video,label\n"a.mp4,1', 'line 2: '),
        (' \n', 'is empty'),
    ],
)
def test_a_wrong_line_is_named(videos, text, message):
    file = write_text(videos / 'list.csv', text)
    with pytest.raises(BvtamError, match=message) as error:
        load_records(file)
    assert str(file) in str(error.value)


@pytest.mark.parametrize(
    ('label', 'message'),
    [('jmup', "unknown label 'jmup'; did you mean jump"), ('2', 'from 0 to 1')],
)
def test_labels_of_lists_are_checked(videos, label, message):
    file = write_text(videos / 'list.txt', f'a.mp4 jump\na.mp4 {label}')
    with pytest.raises(BvtamError, match=f'line 2: .*{message}'):
        load_records(file, labels=['run', 'jump'])
    good = write_text(videos / 'good.txt', 'a.mp4 jump\na.mp4 0')
    records, names = load_records(good, labels=['run', 'jump'])
    assert [r.label for r in records] == [1, 0] and names == ['run', 'jump']


def test_a_file_that_is_no_list(videos):
    (videos / 'x.bin').write_bytes(bytes(range(256)))
    with pytest.raises(BvtamError, match=r'x\.bin is not UTF-8 text'):
        load_records(videos / 'x.bin')
    with pytest.raises(FileNotFoundError, match='nowhere'):
        load_records(videos / 'nowhere')


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('labels.txt', 'run\nJump, high\n'),
        ('moments_categories.txt', 'Jump, high,1\nrun,0\n'),
        ('list.json', '["run", "Jump, high"]'),
        ('index.json', '{"Jump, high": "1", "run": 0}'),
    ],
)
def test_label_files(videos, name, text):
    file = write_text(videos / 'list.txt', 'a.mp4;Jump, high')
    records, names = load_records(file, labels=write_text(videos / name, text))
    assert names == ['run', 'Jump, high'] and records[0].label == 1


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('l.txt', 'run\nrun', "label 'run' is there twice"),
        ('l.txt', 'run,0\njump,2', 'not 0, 1, 2'),
        ('l.json', '[1, 2]', 'list of label names'),
        ('l.json', '{', 'is not JSON'),
    ],
)
def test_wrong_label_files(videos, name, text, message):
    with pytest.raises(BvtamError, match=rf'{name}.*{message}'):
        load_records(videos, labels=write_text(videos / name, text))


# ---- annotations of public data sets ----


def test_kinetics(tmp_path, caplog):
    touch(tmp_path, 'aaa_000001_000011.mp4', 'ride bike/bbb_000002_000012.mkv')
    touch(tmp_path, 'train/ride_bike/ccc.mp4', 'validate/ride bike/-_d_000100_000110.mp4')
    rows = ['swim,aaa,1,11,train', 'ride bike,bbb,2,12,train', 'ride bike,ccc,3,13,train']
    rows += ['ride bike,-_d,100,110,validate', 'swim,gone,5,15,train', 'swim,gone2,5,15,validate']
    file = write_text(
        tmp_path / 'k.csv', 'label,youtube_id,time_start,time_end,split\n' + '\n'.join(rows)
    )
    train, names = load_records(file, 'train')
    assert names == ['ride bike', 'swim']
    assert short(train, tmp_path) == [
        ('aaa_000001_000011.mp4', 1),
        ('ride bike/bbb_000002_000012.mkv', 0),
        ('train/ride_bike/ccc.mp4', 0),
    ]
    assert '2 of 6 videos are not in' in caplog.text and 'gone_000005_000015' in caplog.text
    val = load_records(file, 'val')[0]
    assert short(val, tmp_path) == [('validate/ride bike/-_d_000100_000110.mp4', 0)]
    with pytest.raises(BvtamError, match='none of its 6 videos is in'):
        load_records(file, root=tmp_path / 'elsewhere')


def test_something_something_v2(tmp_path):
    touch(tmp_path, 'videos/7.webm', 'videos/8.mp4', 'videos/9/00001.jpg')
    template = 'Pretending to put [something] on [something]'
    entries = [
        {'id': '7', 'label': 'x on y', 'template': template, 'placeholders': ['x', 'y']},
        {'id': 8, 'label': 'z', 'template': 'Dropping [something]', 'placeholders': ['z']},
        {'id': '9'},
    ]
    file = write_text(tmp_path / 'a' / 'something-something-v2-train.json', json.dumps(entries))
    expected = [('videos/7.webm', 1), ('videos/8.mp4', 0), ('videos/9', -1)]
    names = ['Dropping something', 'Pretending to put something on something']
    records, found = load_records(file, root=tmp_path / 'videos')
    assert found == names and short(records, tmp_path) == expected
    # The published indices, from the file beside it or a given one; names with brackets match too.
    labels = json.dumps({names[1]: '0', names[0]: '1'})
    write_text(tmp_path / 'a' / 'something-something-v2-labels.json', labels)
    for given in (None, names[::-1], [template, 'Dropping [something]']):
        records, _ = load_records(file, root=tmp_path / 'videos', labels=given)
        assert [r.label for r in records] == [0, 1, -1]


@pytest.mark.parametrize(
    ('text', 'message'),
    [('{}', 'no list of'), ('[{"id": "7"}, {}]', 'entry 2 has no id'), ('[', 'not JSON')],
)
def test_wrong_annotations(tmp_path, text, message):
    touch(tmp_path, '7.webm')
    with pytest.raises(BvtamError, match=rf'x\.json.*{message}'):
        load_records(write_text(tmp_path / 'x.json', text))
