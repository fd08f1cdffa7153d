"""Bytes, files, pipes and folders of images to frames."""
