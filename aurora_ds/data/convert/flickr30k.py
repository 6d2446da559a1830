"""Flickr30k. Annotations name images as flickr30k-images/1007129816.jpg, or by the file name alone."""

from __future__ import annotations

from pathlib import PurePosixPath


def image_paths(image: str) -> list[str]:
    """Where the image may be under an image folder, best first. Archives differ in the name of their folder."""
    name = PurePosixPath(image).name
    return [
        image,
        name,
        *(f"{folder}/{name}" for folder in ("flickr30k-images", "flickr30k_images", "Images")),
    ]
