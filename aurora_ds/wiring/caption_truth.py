"""The ground truth of captions: SPLIT_gt.json beside the shards where it is, else the captions in their records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aurora_ds.config import RunConfig
from aurora_ds.data.mixture import open_manifest
from aurora_ds.errors import AuroraError
from aurora_ds.tasks.metrics.captioning import GROUND_TRUTH, check_images
from aurora_ds.tasks.metrics.json_source import Identifier, json_content


@dataclass
class Truth:
    """`content`: COCO's caption annotations, of exactly the media that are evaluated. `source`: where it comes from."""

    content: dict[str, Any]
    source: str

    def captions(self, names: Sequence[Identifier]) -> list[list[str]]:
        """The captions of each medium, in the order of `names`."""
        found: dict[Identifier, list[str]] = {name: [] for name in names}
        for annotation in self.content["annotations"]:
            found[annotation["image_id"]].append(annotation["caption"])
        return list(found.values())


def identities(config: RunConfig, records: Sequence[dict[str, Any]]) -> list[Identifier]:
    """What the dataset calls each medium: its `image_id` or `video_id`, else its number in the split.

    Raises AuroraError when two have the same."""
    names = [record.get("image_id", record.get("video_id", number)) for number, record in enumerate(records)]
    seen: dict[Identifier, int] = {}
    for number, name in enumerate(names):
        if name in seen:
            raise AuroraError(
                f"Media {seen[name]} and {number} of split {config.data.eval_split!r} in {config.data.shards} are both "
                f"called {name!r}, so a caption could be of either. Give every medium its own image_id, and convert "
                "again."
            )
        seen[name] = number
    return names


def ground_truth(
    config: RunConfig, records: Sequence[dict[str, Any]], names: Sequence[Identifier]
) -> Truth | None:
    """The ground truth of the evaluated media; None for a split without captions. evaluate.limit cuts it to them.

    Raises AuroraError: the file is none, or is about other media than are evaluated.
    """
    split, manifest = config.data.eval_split, open_manifest(config)
    path = manifest.folder / f"{split}_gt.json"
    if not path.is_file():
        captions = [record.get("captions", []) for record in records]
        if not any(captions):
            return None
        content = {
            "images": [{"id": name} for name in names],
            "annotations": [
                {"image_id": name, "caption": caption}
                for name, each in zip(names, captions, strict=True)
                for caption in each
            ],
        }
        check_images(names, content, f"the records of split {split!r}")
        return Truth(content, "records")
    content = json_content(path, GROUND_TRUTH)
    if isinstance(content, dict) and content.get("annotations") == []:
        return None
    if config.evaluate.limit is not None and isinstance(content, dict):
        content = _cut(content, set(names))
    check_images(names, content, str(path))
    return Truth(content, path.name)


def _cut(content: dict[str, Any], names: set[Identifier]) -> dict[str, Any]:
    """Without the media that are not in `names`; what has no id stays, for the check to find."""

    def kept(entries: Any, key: str) -> Any:
        if not isinstance(entries, list):
            return entries
        return [each for each in entries if not isinstance(each, dict) or each.get(key) in names]

    parts = {"images": "id", "annotations": "image_id"}
    return {part: kept(content[part], key) for part, key in parts.items() if part in content}
