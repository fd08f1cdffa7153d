"""Procedural clips in which the order of the frames is everything; `clips.py` has the argument and the bounds."""

from .clips import MotionClips as MotionClips
