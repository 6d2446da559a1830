"""Recipes and overrides into a checked RunConfig: `load_config`, and back out: `to_yaml`, `fingerprint`.

A recipe is a name in aurora_ds/recipes/ or a YAML path. Later layers win, key by key:
defaults of config/ < sizes of the backbone < recipe < `dotted.key=value` overrides. Sizes are known of a `builtin:`
backbone, and of a checkpoint that training or export has left with its record beside it.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import typing
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from aurora_ds.config import RunConfig
from aurora_ds.contradictions import contradictions
from aurora_ds.errors import AuroraError
from aurora_ds.whole_model import record_beside

RECIPES = Path(__file__).parent / "recipes"
BUILTIN = "builtin:"
SIZES = ("name", "vision", "text", "mplug", "eve", "embed_dim")  # of the section `backbone`
_ASSETS = Path(__file__).parent / "quickstart" / "assets"
BUILTIN_SIZES = {
    "builtin:world": _ASSETS / "backbone.json",
    "builtin:world-language": _ASSETS / "language" / "backbone.json",
    "builtin:world-mplug": _ASSETS / "mplug" / "backbone.json",
    "builtin:world-eve": _ASSETS / "eve" / "backbone.json",
}


@dataclass
class _Layer:
    """One source of settings: what it says (nested dict) and how to name it in a message."""

    name: str
    values: dict


def recipe_names() -> list[str]:
    """Names that `load_config` accepts without a path, sorted."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(recipe: str, overrides: list[str] | None = None) -> RunConfig:
    """The run that a recipe and its overrides describe: every key, every value, and how they fit together, checked.

    recipe: a name in aurora_ds/recipes/ (`retrieval_coco`) or a YAML file, such as a finished run's config.yaml.
    overrides: `section.key=value` each; the value is YAML (`1e-4`, `true`, `null`, `[a, b]`). A setting that takes
        text keeps it as typed (`data.shards=2014` is the folder 2014); `null` is null everywhere.
    Raises AuroraError: unknown recipe or key (with the nearest right one), wrong value, contradicting settings.
    """
    return _checked_config(_read_recipe(recipe), recipe, overrides or [])


def described_config(settings: dict, name: str, overrides: list[str] | None = None) -> RunConfig:
    """The same for the settings that a trained model carries, in place of a recipe; `name`: what messages call it."""
    return _checked_config(_Layer(name, settings), name, overrides or [])


def _checked_config(base: _Layer, name: str, overrides: list[str]) -> RunConfig:
    layers = [base, *(_read_override(override) for override in overrides)]
    for layer in layers:
        _check_keys(layer)
    sizes = _backbone_sizes(_merge(layers))
    if sizes is not None:
        layers.insert(0, sizes)
    try:
        config = RunConfig.model_validate(_merge(layers))
    except ValidationError as error:
        raise AuroraError(_value_message(error, layers)) from None
    problems = contradictions(config)
    if problems:
        raise AuroraError(f"The settings of {name} do not fit together: {'; '.join(problems)}.")
    return config


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal RunConfig."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def fingerprint(config: RunConfig) -> str:
    """sha256 (64 hex digits) of the canonical JSON: the same for equal settings, however they were written."""
    canonical = json.dumps(
        config.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=True
    )
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _read_recipe(recipe: str) -> _Layer:
    """The nested dict of a recipe's YAML file."""
    path = RECIPES / f"{recipe}.yaml"
    looks_like_path = "/" in recipe or recipe.endswith((".yaml", ".yml"))
    if looks_like_path or not path.is_file():
        path = Path(recipe)
    if not path.is_file():
        near = difflib.get_close_matches(Path(recipe).stem, recipe_names(), n=1, cutoff=0.4)
        raise AuroraError(
            f"There is no recipe {recipe!r}: it is neither a built-in name nor a YAML file"
            f"{' (it is a folder)' if path.is_dir() else ''}. "
            f"{f'Did you mean {near[0]}? ' if near else ''}Built-in recipes: {', '.join(recipe_names())}."
        )
    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise AuroraError(
            f"Recipe {path} cannot be read as YAML: {_one_line(error)}. Correct the file at that place."
        ) from None
    if not isinstance(values, dict) or not values:
        raise AuroraError(
            f"Recipe {path} must be a YAML mapping of settings (`train:` with `epochs: 6` below it, …), "
            f"but it is {'empty' if not values else f'a {type(values).__name__}'}. "
            "`aurora-ds config show retrieval_coco` prints a complete one."
        )
    return _Layer(f"recipe {path.stem if path.parent == RECIPES else path}", values)


def _read_override(override: str) -> _Layer:
    """`a.b=1` as {'a': {'b': 1}}; text where the setting takes text, even when it looks like a number."""
    key, equals, raw = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise AuroraError(
            f"Override {override!r} is not of the form key=value, as in `train.lr=1e-4`. "
            f"{'' if key in _settings() else _nearest_sentence(key)}"
            "`aurora-ds config show RECIPE` prints every key."
        )
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={raw}"]), resolve=True)["value"]
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise AuroraError(
            f"The value of override {override!r} cannot be read as YAML: {_one_line(error)}. "
            f"Put it in quotes: {key}='\"…\"'."
        ) from None
    annotation = _settings().get(key)
    # text that looks like something else: the folder 2014, the description "on"; only null means null, where it may
    if not isinstance(value, str) and (
        annotation is str or (value is not None and _is_optional_text(annotation))
    ):
        value = raw
    for part in reversed(key.split(".")):
        value = {part: value}
    return _Layer(f"override `{override}`", value)


def _backbone_sizes(values: dict) -> _Layer | None:
    """What is known of a backbone's sizes, so that its recipe does not repeat what is beside its file."""
    backbone = values.get("backbone")
    checkpoint = backbone.get("checkpoint") if isinstance(backbone, dict) else None
    if not isinstance(checkpoint, str):
        return None
    if checkpoint.startswith(BUILTIN):
        return _builtin_sizes(checkpoint)
    described = ((record_beside(checkpoint) or {}).get("backbone") or {}).get("config")
    return None if described is None else _Layer(f"the record beside {checkpoint}", _sizes(described))


def _sizes(described: dict) -> dict:
    """The sections of a described backbone that say what its tensors are; how it is trained is the recipe's matter."""
    of_training = {"dropout", "attention_dropout", "drop_path", "mask_embedding"}
    kept = {name: described[name] for name in SIZES if name in described}
    for name, section in kept.items():
        if isinstance(section, dict):
            kept[name] = {key: value for key, value in section.items() if key not in of_training}
    return {"backbone": kept}


def _builtin_sizes(checkpoint: str) -> _Layer:
    path = BUILTIN_SIZES.get(checkpoint)
    if path is None:
        raise AuroraError(
            f"backbone.checkpoint={checkpoint} names no built-in backbone; known: {', '.join(BUILTIN_SIZES)}. "
            "For your own weights give the path of a .pth, .safetensors or transformers-format directory."
        )
    if not path.is_file():
        raise AuroraError(
            f"The built-in backbone {checkpoint} is incomplete: {path} is missing. Install aurora_ds again."
        )
    described = json.loads(path.read_text(encoding="utf-8"))
    sizes = {name: described[name] for name in SIZES if name in described}
    return _Layer(f"built-in backbone {checkpoint}", {"backbone": sizes})


def _merge(layers: list[_Layer]) -> dict:
    """One nested dict; mappings merge key by key, anything else is replaced by the later layer."""

    def over(below: dict, above: dict) -> dict:
        merged = dict(below)
        for key, value in above.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = over(merged[key], value) if both else value
        return merged

    merged: dict = {}
    for layer in layers:
        merged = over(merged, layer.values)
    return merged


def _settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> dict[str, object]:
    """Every dotted key of a run, sections included, with its type annotation."""
    found: dict[str, object] = {}
    for name, field in model.model_fields.items():
        found[prefix + name] = field.annotation
        if _is_section(field.annotation):
            found |= _settings(field.annotation, f"{prefix}{name}.")
    return found


def _is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_optional_text(annotation: object) -> bool:
    return set(typing.get_args(annotation)) == {str, type(None)}


def _check_keys(layer: _Layer) -> None:
    """AuroraError that lists every unknown key of a layer, each with the nearest right key."""
    settings = _settings()
    messages: list[str] = []

    def walk(values: dict, prefix: str) -> None:
        for name, value in values.items():
            key = f"{prefix}{name}"
            if _is_section(settings.get(key)) and isinstance(value, dict):
                walk(value, f"{key}.")
            elif key in settings and isinstance(value, dict) and not _is_section(settings[key]):
                messages.append(
                    f"{key} is one value, but keys were given below it ({', '.join(map(str, value))})"
                )
            elif key not in settings:
                allowed = [each[len(prefix) :] for each in settings if each.startswith(prefix)]
                here = ", ".join(each for each in allowed if "." not in each)
                place = f"{prefix[:-1]} has" if prefix else "The top level has"
                for leaf in _leaves(key, value):
                    messages.append(f"unknown key {leaf}. {_nearest_sentence(leaf)}{place} {here}")

    walk(layer.values, "")
    if messages:
        raise AuroraError(f"In {layer.name}: {'; '.join(messages)}.")


def _leaves(key: str, value: object) -> list[str]:
    """Dotted keys of the single values at and below `key`."""
    if not isinstance(value, dict) or not value:
        return [key]
    return [leaf for name, below in value.items() for leaf in _leaves(f"{key}.{name}", below)]


def _nearest_sentence(key: str) -> str:
    """`Did you mean …? ` over all dotted keys, or nothing when none is near.

    The last part alone counts too, as people forget sections; the same section and a part of the right name
    (`train.batch_size` for `train.global_batch_size`) decide between two that are near.
    """

    def ratio(one: str, other: str) -> float:
        return difflib.SequenceMatcher(None, one, other).ratio()

    section, _, last = key.rpartition(".")

    def nearness(candidate: str) -> tuple[bool, float]:
        its_section, _, its_last = candidate.rpartition(".")
        likeness = max(ratio(key, candidate), ratio(last, its_last))
        contained = len(last) > 2 and (last in its_last or its_last in last)
        return likeness >= 0.7, likeness + 0.1 * (section == its_section) + 0.15 * contained

    best = max(_settings(), key=nearness)
    return f"Did you mean {best}? " if nearness(best)[0] else ""


def _value_message(error: ValidationError, layers: list[_Layer]) -> str:
    """One paragraph for all wrong values: key, value, what is allowed, and which file or override said so."""
    settings = _settings()
    parts: dict[str, str] = {}
    for problem in error.errors(include_url=False):
        location = tuple(str(each) for each in problem["loc"])
        depth = next(n for n in range(len(location), -1, -1) if ".".join(location[:n]) in settings or n == 0)
        key, inside = ".".join(location[:depth]), ".".join(location[depth:])
        source = next(
            (layer.name for layer in reversed(layers) if _says(layer.values, location)), "the defaults"
        )
        allowed = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        if problem["type"] == "model_type":
            allowed = f"a section: write {key}.NAME=VALUE, or its keys below `{location[-1]}:` in YAML"
        elif problem["type"] == "missing":
            allowed = f"longer (item {inside} is missing)"
        elif inside:
            allowed = f"made of other items (item {inside} should be {allowed})"
        value = _value_at(layers, location[:depth])
        parts.setdefault(key, f"{key} = {value!r} in {source}: it should be {allowed}")
    return f"{'; '.join(parts.values())}. `aurora-ds config show RECIPE` prints every key and a value that works."


def _value_at(layers: list[_Layer], location: tuple[str, ...]) -> object:
    value: object = _merge(layers)
    for part in location:
        value = value[part]
    return value


def _says(values: object, location: tuple[str, ...]) -> bool:
    """Whether a layer sets the place of a problem; positions in lists and branches of unions do not matter."""
    for depth, part in enumerate(location):
        if not isinstance(values, dict):
            return depth > 0
        if part not in values:
            return False
        values = values[part]
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")
