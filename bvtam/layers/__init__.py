"""Temporal operators, and what they need in training and in streams."""
