"""Settings: typed models, loaded from a YAML file and the command line.

Settings models live beside the code that they configure; this file only loads, checks and prints them.

    settings = load(PretrainJob, ["--config", "run.yaml", "--optimiser.learning_rate", "1e-3"])

Values given on the command line win over the file, the file wins over a preset, and that over defaults.
"""

import argparse
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, NoReturn, TypeVar

import pydantic
import yaml
from pydantic_core import PydanticUndefined

from pipeline.errors import SettingsError
from pipeline.masking import holds_secret
from pipeline.text_files import parse_yaml


class _IsUri:
    """Marks a type."""


def _without_secrets(uri: str) -> str:
    if holds_secret(uri):
        raise ValueError(
            "holds a password, a key or a signature, and settings are kept with every run, where others read them; leave it "
            "out, and give it in the environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or a database's own (PGPASSWORD; docs/security.md)"
        )
    return uri


Uri = Annotated[str, _IsUri(), pydantic.AfterValidator(_without_secrets)]
"""A setting that names a place in storage: a local path, file:// or s3://. It never holds a secret."""


class Settings(pydantic.BaseModel):
    """Base of all settings: unknown keys are refused, instances are immutable, field docstrings become the help."""

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    presets: ClassVar[Mapping[str, Path]] = {}
    """Settings files, by the value of the setting `preset` that `load` reads them for."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        """Part of a section given: the rest of it keeps this model's defaults, not those of the section's own class."""
        if not isinstance(values, dict):
            return values
        return {
            name: _over(cls.model_fields[name].default, value) if name in cls.model_fields else value
            for name, value in values.items()
        }


def _over(default: Any, value: Any) -> Any:
    if not isinstance(default, Settings) or not isinstance(value, dict):
        return value
    given = {name: _over(getattr(default, name, None), item) for name, item in value.items()}
    return {**{name: getattr(default, name) for name in type(default).model_fields}, **given}


SettingsT = TypeVar("SettingsT", bound=pydantic.BaseModel)


def load(
    settings_type: type[SettingsT], argv: Sequence[str] | None = None, prog: str = "", description: str = ""
) -> SettingsT:
    """Settings from `--config FILE.yaml` and `--some.setting value` arguments.

    argv: arguments without the program's name; None takes the process's own.
    Raises SettingsError with one line for each setting that is wrong. `--help` prints and exits with 0.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(settings_type, prog, description)
    flags = {flag.path: flag.annotation for flag in _flags(settings_type)}
    arguments = vars(parser.parse_args(_normalised(argv, flags)))
    config_file = arguments.pop("config")
    values = _read_yaml(config_file) if config_file else {}
    preset = arguments.get("preset") or values.get("preset")
    presets = getattr(settings_type, "presets", {})
    if preset in presets:
        values = merged(_read_yaml(str(presets[preset])), values)
    for path, text in arguments.items():
        if text is not None:
            _assign(values, path, _parse_value(text))
    try:
        return settings_type.model_validate(values)
    except pydantic.ValidationError as error:
        raise SettingsError(*(_describe(settings_type, item) for item in error.errors())) from None


def to_yaml(settings: pydantic.BaseModel) -> str:
    """The resolved settings as YAML; `load` reads it back through `--config`."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def flatten(settings: pydantic.BaseModel) -> dict[str, Any]:
    """Nested settings as one flat mapping: {"optimiser.learning_rate": 0.001, ...}."""
    return flatten_values(settings.model_dump(mode="json"))


def flatten_values(values: dict[str, Any]) -> dict[str, Any]:
    """`flatten` for settings that are plain values, as a YAML file gives them."""

    def walk(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from walk(f"{prefix}.{key}" if prefix else str(key), item)
        else:
            yield prefix, value

    return dict(walk("", values)) if values else {}


def uris_in(settings: pydantic.BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value of every setting of type `Uri`; those in lists and mappings too."""
    for name, field in type(settings).model_fields.items():
        value, path = getattr(settings, name), f"{prefix}{name}"
        items = (
            list(value.items())
            if isinstance(value, dict)
            else list(enumerate(value))
            if isinstance(value, list)
            else []
        )
        parts = [(path, value), *((f"{path}.{key}", item) for key, item in items)]
        for part_path, part in parts:
            if isinstance(part, pydantic.BaseModel):
                yield from uris_in(part, f"{part_path}.")
            elif isinstance(part, str) and (_is_uri(field.annotation) or any(map(_is_mark, field.metadata))):
                yield part_path, part


def _is_uri(annotation: Any) -> bool:
    """Whether a type is `Uri`, or holds it."""
    marked = any(map(_is_mark, getattr(annotation, "__metadata__", ())))
    return marked or any(_is_uri(part) for part in typing.get_args(annotation))


def _is_mark(item: Any) -> bool:
    return isinstance(item, _IsUri)


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with the changes in their places; a mapping is changed key by key, everything else replaced."""
    result = dict(values)
    for name, change in changes.items():
        old = result.get(name)
        result[name] = merged(old, change) if isinstance(old, Mapping) and isinstance(change, Mapping) else change
    return result


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(message)


def _parser(settings_type: type[pydantic.BaseModel], prog: str, description: str) -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog=f"python -m {prog}" if prog else None,
        description=description,
        usage="%(prog)s [--config FILE.yaml] [--setting value ...]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="settings file; the command line wins over it")
    groups: dict[str, Any] = {}
    for path, annotation, text in _flags(settings_type):
        section = path.rpartition(".")[0]
        if section not in groups:
            groups[section] = parser.add_argument_group(section or "settings")
        groups[section].add_argument(
            f"--{path}", dest=path, metavar=_type_name(annotation), help=text.replace("%", "%%")
        )
    return parser


class _Flag(NamedTuple):
    """A setting that can be given on the command line."""

    path: str
    """Dotted."""
    annotation: Any
    help: str


def _flags(model: type[pydantic.BaseModel], prefix: str = "") -> Iterator[_Flag]:
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if field.discriminator:
            yield from _flags_of_kinds(_kinds(field), str(field.discriminator), f"{path}.")
            continue
        nested = _settings_class(field.annotation)
        if nested is not None:
            yield from _flags(nested, f"{path}.")
        if nested is None or _is_optional(field.annotation):
            default = f"default: {_show(field.get_default(call_default_factory=True))}"
            text = f"{_one_line(field.description)} ({'required' if field.is_required() else default})"
            yield _Flag(path, Uri if any(map(_is_mark, field.metadata)) else field.annotation, text.strip())


def _flags_of_kinds(kinds: Mapping[str, type[pydantic.BaseModel]], key: str, prefix: str) -> Iterator[_Flag]:
    """Those of settings of one of several kinds. The help says of which kinds a setting is, if not of all in the same way."""
    text = "; ".join(f"{kind}: {_one_line(model.__doc__).rstrip('.')}" for kind, model in kinds.items())
    yield _Flag(f"{prefix}{key}", typing.Literal[tuple(kinds)], f"{text} (required)")
    flags = {kind: {flag.path: flag for flag in _flags(model, prefix)} for kind, model in kinds.items()}
    for path in dict.fromkeys(path for of_kind in flags.values() for path in of_kind if path != f"{prefix}{key}"):
        found = {kind: of_kind[path] for kind, of_kind in flags.items() if path in of_kind}
        texts: dict[str, list[str]] = {}
        for kind, flag in found.items():
            texts.setdefault(flag.help, []).append(kind)
        is_common = len(found) == len(kinds) and len(texts) == 1
        text = " ".join(text if is_common else f"[{', '.join(of)}] {text}" for text, of in texts.items())
        yield _Flag(path, reduce(or_, (flag.annotation for flag in found.values())), text)


def _kinds(field: Any) -> dict[str, type[pydantic.BaseModel]]:
    """{value of the discriminator: model} of a field that holds settings of one of several kinds."""
    members = typing.get_args(field.annotation)
    return {typing.get_args(member.model_fields[field.discriminator].annotation)[0]: member for member in members}


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _settings_class(annotation: Any) -> type[pydantic.BaseModel] | None:
    """The settings model behind an annotation (also behind `Model | None`), if there is exactly one."""
    candidates = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    models = [c for c in candidates if isinstance(c, type) and issubclass(c, pydantic.BaseModel)]
    return models[0] if len(models) == 1 else None


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _is_optional(annotation: Any) -> bool:
    return _is_union(annotation) and type(None) in typing.get_args(annotation)


def _type_name(annotation: Any) -> str:
    """A type as --help shows it."""
    return "|".join(_alternatives(annotation))


def _alternatives(annotation: Any) -> list[str]:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is type(None):
        return ["none"]
    if annotation is Ellipsis:  # of tuple[int, ...]
        return ["..."]
    if origin is typing.Annotated:
        return ["URI"] if _is_uri(annotation) else _alternatives(annotation.__origin__)
    if origin is typing.Literal:
        return [str(value) for value in arguments]
    if _is_union(annotation):
        names = dict.fromkeys(name for part in arguments for name in _alternatives(part))
        return sorted(names, key="none".__eq__)  # none last
    name = getattr(origin or annotation, "__name__", str(annotation))
    return [f"{name}[{', '.join(map(_type_name, arguments))}]" if arguments else name]


def _show(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, pydantic.BaseModel):
        return value.model_dump_json()
    return "none" if value is None else str(value).replace("typing.", "")


def _normalised(argv: list[str], flags: dict[str, Any]) -> list[str]:
    """Every argument as `--setting=value`, unknown settings refused with a hint at the one probably meant.

    `--models.mine URI`, where `models` is a mapping, becomes part of one `--models={mine: URI}`.
    """
    result: list[str] = []
    mappings: dict[str, dict[str, Any]] = {}
    remaining = iter(enumerate(argv))
    for position, argument in remaining:
        if argument in ("--help", "-h"):
            return ["--help"]
        if not argument.startswith("--"):
            raise SettingsError(f"unexpected argument '{argument}'; settings are given as --some.setting value")
        name, has_value, value = argument[2:].partition("=")
        parent, _, key = name.rpartition(".")
        in_mapping = parent in flags and typing.get_origin(flags[parent]) is dict
        if name != "config" and name not in flags and not in_mapping:
            close = difflib.get_close_matches(name, flags, n=1)
            hint = f"did you mean --{close[0]}?" if close else "--help lists the settings there are"
            raise SettingsError(f"unknown setting '{name}'; {hint}")
        if not has_value:
            following = next(iter(argv[position + 1 : position + 2]), "--")
            if not following.startswith("--"):
                value = following
                next(remaining)
            elif name in flags and flags[name] is bool:
                value = "true"  # a switch: --fresh
            else:
                raise SettingsError(f"setting '{name}' needs a value")
        if name in flags or name == "config":
            result.append(f"--{name}={value}")
        else:
            mappings.setdefault(parent, {})[key] = _parse_value(value)
    for parent, mapping in mappings.items():
        result.append(f"--{parent}={yaml.safe_dump(mapping, default_flow_style=True, width=100_000).strip()}")
    return result


def _parse_value(text: str) -> Any:
    """Command-line text: YAML for lists, mappings and null; plain text otherwise (pydantic converts numbers)."""
    if text.lower() in ("none", "null"):
        return None
    if text[:1] in ("[", "{"):
        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            raise SettingsError(f"'{text}' is not a valid YAML list or mapping") from None
    return text


def _assign(values: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split(".")
    for parent in parents:
        if not isinstance(values.get(parent), dict):
            values[parent] = {}
        values = values[parent]
    values[last] = value


def _read_yaml(path: str) -> dict[str, Any]:
    try:
        values = parse_yaml(Path(path).read_bytes())
    except OSError as error:
        raise SettingsError(f"setting 'config': cannot read '{path}': {error.strerror}") from None
    except ValueError as error:
        raise SettingsError(f"setting 'config': '{path}' is not valid YAML ({error})") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"setting 'config': '{path}' must hold a mapping of settings")
    return values


def _describe(settings_type: type[pydantic.BaseModel], error: Any) -> str:
    """One line for one pydantic error: the setting, the value, what is allowed."""
    path, kind = _located(settings_type, error["loc"])
    message, value = error["msg"].removeprefix("Value error, "), error["input"]
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path += f".{error['ctx']['discriminator'][1:-1]}"
    if error["type"] in ("missing", "union_tag_not_found"):
        return f"setting '{path}' is required"
    if error["type"] == "union_tag_invalid":
        value, expected = error["ctx"]["tag"], error["ctx"]["expected_tags"]
        message = f"input should be {' or '.join(expected.rsplit(', ', 1))}"
    if error["type"] == "extra_forbidden":
        flags = [flag.path for flag in _flags(settings_type)]
        if not kind or not any(flag == path or flag.startswith(f"{path}.") for flag in flags):
            close = difflib.get_close_matches(path, flags, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            return f"unknown setting '{path}'{hint}"
        path, value = next(iter(flatten_values({path: value}).items()))
        message = f"has no meaning for {kind}"
    if not path:
        return message
    shown = "none" if value is None else f"{value!r}"
    return f"setting '{path}' = {shown}: {message[0].lower()}{message[1:]}"


def _located(model: type[pydantic.BaseModel] | None, loc: Sequence[str | int]) -> tuple[str, str]:
    """(dotted path, kind of the settings around it) of an error; pydantic names the kind as a step of the path."""
    names, kind = [], ""
    steps = iter(loc)
    for step in steps:
        names.append(str(step))
        field = model.model_fields.get(str(step)) if model else None
        if field is not None and field.discriminator:
            kind = str(next(steps, ""))
            model = _kinds(field).get(kind)
        else:
            model = _settings_class(field.annotation) if field is not None else None
    return ".".join(names), kind
