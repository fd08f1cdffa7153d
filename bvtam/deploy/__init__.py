"""The same models for use: optimised, exported, measured, counted."""
