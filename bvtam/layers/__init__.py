"""Temporal operators, and what they need in training and in streams."""

import timm as timm  # first: this imports bvtam.factory, which needs every module here whole
