"""Flickr30k. Annotations name images as flickr30k-images/1007129816.jpg, or by the file name alone."""

from __future__ import annotations

from pathlib import PurePosixPath

from aurora_ds.data.convert.annotations import FORMATS, read_captions

__all__ = ["FORMATS", "candidates", "read"]

read = read_captions


def candidates(name: str) -> list[str]:
    """Where the image may be under an image folder, best first. Archives differ in the name of their folder."""
    file = PurePosixPath(name).name
    folders = ("flickr30k-images", "flickr30k_images", "Images")
    return [name, file, *(f"{folder}/{file}" for folder in folders)]
