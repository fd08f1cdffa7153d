"""Videos, data sets and the clips that models see:

video/            any source of frames: `open_video`, readers
records.py        a video of a data set
list_formats.py   the lines of lists and annotations; add a format here
labels.py         names of labels and their indices
lists.py          a list to records
load.py           a data set, class folders or a list, to records: `load_records`
sampling.py       which frames of a video are picked
transforms.py     frames to crops, with augmentation; directions.py: labels that a mirror swaps
datasets.py       records to clips, for a `DataLoader`; hub_datasets.py: those of other libraries
failures.py       what happens with videos that cannot be read
motion/           procedural clips, a data set without videos
prepare/          data sets encoded again: small and quick to read
"""
