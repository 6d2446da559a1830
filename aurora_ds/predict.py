"""Single predictions: a trained adapter or a frozen backbone, and media that no shard holds.

    predictor = aurora_ds.load("runs/vqa")
    predictor.predict(image="photo.jpg", text="what is the man holding?")

or `aurora-ds predict --adapter runs/vqa --image photo.jpg --text "what is the man holding?"`. Media are decoded and
computed as evaluation does it, so the answer is the one that evaluation counted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from aurora_ds.assemble import Assembled
from aurora_ds.config import RunConfig
from aurora_ds.data.decode import open_image
from aurora_ds.data.given import Kind, existing_file, given_medium
from aurora_ds.errors import AuroraError
from aurora_ds.evaluate import RESULTS_FILE, judged_task, placed, provenance, task_forward
from aurora_ds.recipe import load_config
from aurora_ds.runtime import process_group
from aurora_ds.runtime.run_folder import replace_file
from aurora_ds.trained import Trained, find_trained
from aurora_ds.wiring.base import clip_conditions

_WANTED = {
    "image": "an image: image=",
    "video": "a clip: video=",
    "pair": "two images: images=[left, right]",
}


def load(
    adapter: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    backbone: str | Path | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
) -> Predictor:
    """A model that answers for single images, clips and pairs.

    Args:
        adapter: a run's folder, a checkpoint, an adapter, or an exported or fully fine-tuned model; None: the frozen
            backbone of `recipe`, zero-shot. recipe: a built-in name or a YAML path, in place of the settings that the
            adapter carries. overrides: settings to change, as "data.video.frames=16".
        backbone: the frozen backbone's file, where it is not where the adapter or the recipe says.
        device: None: the GPU where there is one. precision: fp32, bf16 or fp16; None: the recipe's, else fp32.
    Raises: AuroraError when neither adapter nor recipe is given, for wrong settings, files that are missing or damaged,
        an adapter of another backbone or task, and a device that is not there.
    """
    changes = [*overrides]
    changes += [] if backbone is None else [f"backbone.checkpoint={backbone}"]
    changes += [] if precision is None else [f"train.precision={precision}"]
    trained = None if adapter is None else find_trained(adapter)
    if trained is not None:
        config = trained.config(None if recipe is None else str(recipe), changes)
    elif recipe is not None:
        config = load_config(str(recipe), changes)
    else:
        raise AuroraError(
            "Nothing to predict with: give an adapter (a run's folder), or a recipe for its frozen backbone."
        )
    where = _device(device)
    with torch.random.fork_rng(devices=[]):  # assembling seeds torch, which is the caller's
        assembled = judged_task(_for_prediction(config), trained and trained.adapter, where)
        if trained is not None and trained.weights is not None:
            assembled.wiring.adopt(assembled.task, trained.saved)
    return Predictor(assembled, trained, where)


class Predictor:
    """A task ready to be asked. Made by `load`.

    `about`: which model gives them: task, method, adapter, preset, backbone with its sha256, seed.
    """

    def __init__(self, assembled: Assembled, trained: Trained | None, device: torch.device) -> None:
        self.config, self._assembled, self._device = assembled.config, assembled, device
        self.wiring = assembled.wiring
        self.about: dict[str, Any] = {
            "task": self.config.task,
            **provenance(assembled, trained and trained.adapter),
        }
        if trained is not None:
            self.about |= {"method": trained.method, "adapter": str(trained.folder)}

    def predict(
        self,
        image: Any = None,
        video: Any = None,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        frames: int | None = None,
        window: tuple[float, float | None] | None = None,
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """What the task says about media: a dict for one, a list of dicts for a list.

        Args (one of the first three):
            image: a path, the bytes of a file, a Pillow image, or uint8 (H, W, 3) in RGB; or a list of them.
            video: a path, the bytes of a file, or frames uint8 (T, H, W, 3) in RGB, which stand for equal stretches of
                the clip; or a list of them.
            images: for statements about two images: [left, right]; or a list of such pairs.
            text: question answering, statements, grounding: one for all media, or a list with one for each; a list with
                a single medium: several about it, which gives a list. Retrieval: the texts that each medium is compared
                with. Captioning: none.
            frames: how many are taken of a clip. window: [start, end] in seconds, where they are taken from. Both as in
                data.video unless given.
        Returns: JSON-able dicts. Retrieval: texts, best first, each {text, similarity, match, score}. Question
            answering: question, answer, score, and of ranked answers the best as answers, each {answer, probability}.
            Captioning: caption, score. Statements: statement, label (True or False), probabilities. Grounding: phrase,
            box in pixels of the image (left, top, width, height), probability.
        Raises: AuroraError for media that the task does not take or that cannot be decoded, and for texts that are too
            few, too many or empty.
        """
        kind, media, single = _media(image, video, images)
        self._refuse_other(kind)
        rows, texts, single = self._rows(len(media), text, single)
        config = _reading(self.config, frames, window)
        size, said = config.evaluate.image_batch_size, []
        for first in range(0, len(rows), size):
            part = rows[first : first + size]
            own = texts[first : first + size] if self.wiring.texts == "each" else texts
            said += self._batch(kind, media, part, own, config)
        return said[0] if single else said

    def _batch(
        self, kind: Kind, media: list[Any], rows: list[int], texts: list[str], config: RunConfig
    ) -> list[dict[str, Any]]:
        """Answers about media number `rows`."""
        side = config.backbone.vision.image_size
        decoded = {
            row: given_medium(kind, media[row], config, f"{kind} {row}") for row in dict.fromkeys(rows)
        }
        batch = torch.empty(len(rows), *decoded[rows[0]].shape(side))
        for place, row in zip(batch.numpy(), rows, strict=True):
            decoded[row].write(place, config, None)
        with torch.inference_mode():
            said = self.wiring.predict(
                task_forward(self._assembled), self._assembled.tokenizer, batch.to(self._device), texts
            )
        if kind != "image":
            return said
        return [
            self.wiring.in_original(each, decoded[row].record) for row, each in zip(rows, said, strict=True)
        ]

    def _rows(
        self, media: int, text: str | Sequence[str] | None, single: bool
    ) -> tuple[list[int], list[str], bool]:
        """(medium of each answer, texts, whether the answer is one dict)."""
        several = isinstance(text, list | tuple)
        texts = [*text] if several else [] if text is None else [text]
        if wrong := [type(each).__name__ for each in texts if not isinstance(each, str)]:
            raise AuroraError(f'A text is of type {wrong[0]}. Give strings: text="…", or text=["…", "…"].')
        task, wants = self.config.task, self.wiring.texts
        if wants == "none" and texts:
            raise AuroraError(f"The task {task} takes no text: it writes one.")
        if wants != "each" or not texts:
            return list(range(media)), texts, single
        if not several:
            return list(range(media)), texts * media, single
        if single:
            return [0] * len(texts), texts, False
        if len(texts) != media:
            raise AuroraError(
                f"{len(texts)} texts were given for {media} media. For the task {task} give one text for all of them, "
                "or a list with one for each."
            )
        return list(range(media)), texts, single

    def _refuse_other(self, kind: Kind) -> None:
        if kind not in self.wiring.takes:
            wanted = " or ".join(_WANTED[each] for each in self.wiring.takes)
            raise AuroraError(f"The task {self.config.task} takes {wanted}, not {_WANTED[kind]}.")


def _media(image: Any, video: Any, images: Any) -> tuple[Kind, list[Any], bool]:
    """(kind, media, whether one was given and not a list)."""
    given = {"image": image, "video": video, "pair": images}
    named = [kind for kind, value in given.items() if value is not None]
    if len(named) != 1:
        raise AuroraError(
            f"{'No medium was' if not named else 'Several media were'} given. Give one of image=, video= or images=."
        )
    kind, value = named[0], given[named[0]]
    if kind != "pair":
        several = isinstance(value, list | tuple)
        return kind, list(value) if several else [value], not several
    if not isinstance(value, list | tuple):
        raise AuroraError(
            "images= takes two images, [left, right], or a list of such pairs. One image is image=."
        )
    several = all(isinstance(each, list | tuple) for each in value)
    pairs = list(value) if several else [value]
    if odd := [len(pair) for pair in pairs if len(pair) != 2]:
        raise AuroraError(
            f"images= takes two images, [left, right], or a list of such pairs; here are {odd[0]}."
        )
    return kind, pairs, not several


def _reading(config: RunConfig, frames: int | None, window: Any) -> RunConfig:
    """The configuration with another way of reading clips."""
    changes = {"frames": frames, "window": window}
    config = config.model_copy(deep=True)
    for name, value in changes.items():
        if value is not None:
            try:
                setattr(config.data.video, name, value)
            except ValidationError as error:
                allowed = error.errors()[0]["msg"].removeprefix("Value error, ")
                raise AuroraError(f"{name}={value!r} of a clip: {allowed}.") from None
    return config


def _for_prediction(config: RunConfig) -> RunConfig:
    """Without what only training needs: queues, a momentum model, a fully trained backbone in two copies."""
    config = config.model_copy(deep=True)
    config.backbone.momentum_weights = config.backbone.queue_weights = "ignore"
    config.retrieval.queue_size, config.retrieval.momentum_model = 0, "slot"
    config.vqa.distillation = 0.0
    config.train.method = "aurora"
    shards = config.data.shards
    if shards is not None and "://" not in shards and not Path(shards).exists():
        config.data.shards = None  # of a recipe; a task that wants more of them than media says so itself
    return config


def _device(asked: str | torch.device | None) -> torch.device:
    if asked is None:
        return process_group.device()
    try:
        device = torch.device(asked)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise AuroraError(
            f"There is no device {asked!r} here: {str(error).splitlines()[0]}. Give cpu or cuda, or leave it out."
        ) from error
    return device


# the command -------------------------------------------------------------------------------------


def run(
    recipe: str | None,
    overrides: Sequence[str],
    adapter: str | Path | None,
    images: Sequence[str],
    videos: Sequence[str],
    texts: Sequence[str],
    output: str | Path | None = None,
    as_json: bool = False,
) -> dict[str, Any]:
    """Predict about files and print a table, or with `as_json` the record; with `output` also write results.json there,
    and where the task finds something in images (grounding: boxes) each image with it drawn in, which a prediction
    names as `drawn`.

    Every text is put to every medium; a task on pairs takes the images two by two. Returns the record: what `about` of
    a Predictor says, how clips were read, and `predictions`, one per medium and text. Raises AuroraError.
    """
    files = [existing_file(file) for file in (*images, *videos)]  # before a model is loaded
    if output is not None:
        _refuse_other_results(Path(output))
    predictor = load(adapter, recipe=recipe, overrides=overrides)
    started = time.perf_counter()
    kind: Kind = "video" if videos else "pair" if "pair" in predictor.wiring.takes else "image"
    said = list(_about_files(predictor, kind, [str(file) for file in files], list(texts)))
    if output is not None and kind == "image":
        said = _drawn(predictor, said, Path(output))
    video = predictor.config.data.video
    clips = {"frames": video.frames, "sampling": video.eval_sampling, "window": video.window}
    record = {
        **predictor.about,
        **(clips if videos else {}),
        "seconds": round(time.perf_counter() - started, 2),
        "predictions": said,
    }
    if output is not None:
        replace_file(Path(output) / RESULTS_FILE, json.dumps(record, indent=1))
    if as_json:
        print(json.dumps(record, indent=1))
    else:
        Console().print(_table(record))
        print(placed(record, clip_conditions(predictor.config, bool(videos))))
    return record


def _about_files(
    predictor: Predictor, kind: Kind, files: list[str], texts: list[str]
) -> Iterator[dict[str, Any]]:
    """A prediction per medium and text, with the names of its files."""
    if kind == "pair":
        if len(files) % 2:
            raise AuroraError(
                f"The task {predictor.config.task} is about two images: give --image an even number of files, left and "
                f"right of each pair, not {len(files)}."
            )
        media: list[Any] = [files[first : first + 2] for first in range(0, len(files), 2)]
    else:
        media = files
    keyword = "images" if kind == "pair" else kind
    if predictor.wiring.texts == "each" and len(texts) > 1:
        for medium in media:
            yield from (
                {keyword: medium, **said} for said in predictor.predict(**{keyword: medium}, text=texts)
            )
        return
    one = predictor.wiring.texts == "each" and texts
    found = predictor.predict(**{keyword: media}, text=texts[0] if one else texts or None)
    yield from ({keyword: medium, **said} for medium, said in zip(media, found, strict=True))


def _drawn(predictor: Predictor, said: list[dict[str, Any]], output: Path) -> list[dict[str, Any]]:
    """Writes NAME-N.png for prediction N of photo NAME, where the task draws; the predictions with these files."""
    named, data = [], predictor.config.data
    for number, each in enumerate(said):
        path = Path(each["image"])
        image = open_image(path.read_bytes(), data.max_pixels, str(path), data.image_decoder)
        drawing = predictor.wiring.drawing(each, image)
        if drawing is not None:
            file = output / f"{path.stem}-{number}.png"
            output.mkdir(parents=True, exist_ok=True)
            drawing.save(file)
            each = each | {"drawn": str(file)}
        named.append(each)
    return named


def _table(record: dict[str, Any]) -> Table:
    """A row per prediction; where one has a list (texts by rank), a row per entry."""
    table = Table(title=f"{record['task']}, {record['method']}")
    predictions = record["predictions"]
    files = {file for said in predictions for file in _files(said)}
    short = len({Path(file).name for file in files}) == len(files)
    rows = [row for said in predictions for row in _rows(said, short)]
    headings = list(dict.fromkeys(heading for row in rows for heading in row))
    for heading in headings:
        numbers = any(isinstance(row.get(heading), int | float) for row in rows)
        table.add_column(heading, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(heading, "")) for heading in headings))
    return table


def _files(said: dict[str, Any]) -> list[str]:
    """Of the medium, which a prediction begins with."""
    medium = next(iter(said.values()))
    return medium if isinstance(medium, list) else [medium]


def _rows(said: dict[str, Any], short: bool) -> list[dict[str, Any]]:
    names = [Path(file).name if short else file for file in _files(said)]
    said = said | {next(iter(said)): "\n".join(names)}
    lists = [key for key, value in said.items() if isinstance(value, list)]
    plain = {key: value for key, value in said.items() if key not in lists}
    entries = [entry for key in lists for entry in said[key]]
    return [plain | entries[0], *entries[1:]] if entries else [plain]


def _cell(value: Any) -> Text:
    """As it stands: a string would be read for markup in brackets."""
    if isinstance(value, float):
        return Text(f"{value:.3f}")
    if isinstance(value, dict):
        return Text(", ".join(f"{key} {_cell(each)}" for key, each in value.items()))
    return Text(str(value))


def _refuse_other_results(folder: Path) -> None:
    """A run's results.json is not written over by predictions."""
    path = folder / RESULTS_FILE
    if not path.is_file():
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = None
    if not isinstance(there, dict) or "predictions" not in there:
        raise AuroraError(f"{path} holds the results of something else. Give another --output.")
