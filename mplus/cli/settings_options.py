"""Options made from the fields of a settings class.

A field's docstring is the option's help, so that a setting is described, typed and checked in one place.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

Settings = TypeVar("Settings", bound=BaseModel)
Command = TypeVar("Command", bound=Callable[..., None])


def takes(settings: type[BaseModel], **names: Sequence[str]) -> Callable[[Command], Command]:
    """Give a command, in place of its ``**options``, one option for each field of some settings.

    A required field is an argument, before those of the command itself. What is not given on the command line is
    None. Paths and dictionaries (``name=value``) may be given several times; other sequences are one text, separated
    by commas.

    Args:
        settings: The settings that the command takes.
        names: Names of options that are not called as their field.
    """

    def give(command: Command) -> Command:
        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not p.VAR_KEYWORD]
        fields = [_parameter(name, field, names.get(name, ())) for name, field in settings.model_fields.items()]
        arguments = [
            field for field, of in zip(fields, settings.model_fields.values(), strict=True) if of.is_required()
        ]
        options = [field for field in fields if field not in arguments]
        command.__signature__ = inspect.Signature([*arguments, *own, *options])  # pyright: ignore[reportFunctionMemberAccess]
        return command

    return give


def _parameter(name: str, field: FieldInfo, names: Sequence[str]) -> inspect.Parameter:
    text = (field.description or "").replace("\n", " ")
    kind = _plain(field.annotation)
    if get_origin(kind) is Literal:
        kind = str  # which of them is checked with the other settings
    if field.is_required():
        annotation, default = Annotated[kind, typer.Argument(help=text)], inspect.Parameter.empty
    else:
        if get_origin(kind) is dict or _holds_paths(kind):
            kind, text = list[Path] if _holds_paths(kind) else list[str], f"{text} Repeatable."
        elif get_origin(kind) is tuple:
            kind = str
        usual = field.get_default(call_default_factory=True)
        shown = ",".join(map(str, usual)) if isinstance(usual, tuple) else str(usual or "")
        annotation, default = Annotated[kind | None, typer.Option(*names, help=text, show_default=shown or False)], None
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def given_settings(settings: type[BaseModel], given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that were given on the command line, as the settings take them.

    Raises:
        ValueError: A text that cannot be read as what the field holds.
    """
    found: dict[str, Any] = {}
    for name, value in given.items():
        kind = _plain(settings.model_fields[name].annotation)
        option = f"--{name.replace('_', '-')}"
        if value is None or value == []:
            continue
        if get_origin(kind) is dict:
            found[name] = dict(_pairs(option, value, is_number=_plain(get_args(kind)[1]) is int))
        elif get_origin(kind) is tuple and not _holds_paths(kind):
            found[name] = _items(option, value, is_number=_plain(get_args(kind)[0]) is int)
        else:
            found[name] = value
    return found


def checked(settings: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Settings from what was given.

    Raises:
        ValueError: What is wrong with the first field that is.
    """
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where, message = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            known = first.get("ctx", {})["expected"].replace("'", "")
            message = f"{first['input']!r}: expected one of {known}."
        raise ValueError(f"{where + ': ' if where else ''}{message}") from error


def _plain(annotation: Any) -> Any:
    """A type without its constraints, and without None."""
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return _plain(next(part for part in get_args(annotation) if part is not NoneType))
    return annotation


def _holds_paths(kind: Any) -> bool:
    return get_origin(kind) is tuple and get_args(kind)[0] is Path


def _items(option: str, text: str, *, is_number: bool) -> list[Any]:
    parts = [part.strip() for part in text.split(",")]
    try:
        return [int(part.replace("_", "")) for part in parts] if is_number else parts
    except ValueError as error:
        raise ValueError(f"{option} {text}: expected whole numbers, separated by commas.") from error


def _pairs(option: str, texts: Sequence[str], *, is_number: bool) -> Iterator[tuple[str, Any]]:
    for pair in (part for text in texts for part in text.split(",")):
        name, equals, value = (part.strip() for part in pair.partition("="))
        if not name or not equals or not value:
            raise ValueError(f"{option} {pair}: expected name=value.")
        if is_number and not value.isdecimal():
            raise ValueError(f"{option} {pair}: expected {name} and a whole number.")
        try:
            yield name, json.loads(value)
        except json.JSONDecodeError:
            yield name, value
