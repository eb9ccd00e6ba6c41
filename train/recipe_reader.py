"""Recipes from TOML: what they extend, what the command line sets, and errors that name the key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from edge_imputer.errors import SpecError
from edge_imputer.specs import PRESETS

RECIPES = Path(__file__).parent / "recipes"
EXTENDS = "extends"  # another recipe's name or file, whose values this one replaces

Table = dict[str, Any]
T = TypeVar("T", bound=msgspec.Struct)


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def recipe_path(name: str, beside: Path | None = None) -> Path:
    """The file of a recipe: a path to a file, or the name of a shipped recipe.

    A relative path is looked up in the folder `beside` where that is given.
    """
    path = (beside / name) if beside else Path(name)
    if path.suffix == ".toml" or path.is_file():
        if not path.is_file():
            raise SpecError(f"expected a TOML recipe at {path}, found no file")
        return path
    shipped = RECIPES / f"{name}.toml"
    if not shipped.is_file():
        raise SpecError(
            f"expected a recipe's file or one of {', '.join(shipped_recipes())}, got "
            f"{name!r}{_nearest(name, shipped_recipes())}"
        )
    return shipped


def read_tables(path: Path, seen: tuple[Path, ...] = ()) -> Table:
    """A recipe's tables, on top of those of the recipe it extends."""
    if path in seen:
        raise SpecError(f"{path}: recipes that extend each other in a circle; break it")
    try:
        tables = msgspec.toml.decode(path.read_bytes())
    except FileNotFoundError:
        raise SpecError(f"expected a TOML recipe at {path}, found no file") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: not TOML: {error}") from error
    base = tables.pop(EXTENDS, None)
    try:
        tables = with_presets(tables)
        if base is None:
            return tables
        if not isinstance(base, str):
            raise SpecError(f"expected a recipe's name or file, got {base!r}")
        extended = recipe_path(base, path.parent)
    except SpecError as error:
        where = "" if str(error).startswith("encoder") else f" {EXTENDS}:"
        raise SpecError(f"{path}:{where} {error}") from error
    return merge(read_tables(extended, (*seen, path)), tables)


def merge(base: Table, changes: Mapping[str, Any]) -> Table:
    """`base` with `changes`, table by table. A table of another ``kind`` replaces the whole."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        same_kind = isinstance(old, dict) and isinstance(value, dict)
        if same_kind and "kind" in value and old.get("kind") != value["kind"]:  # type: ignore[union-attr]
            same_kind = False
        merged[key] = merge(old, value) if same_kind else value  # type: ignore[arg-type]
    return merged


def with_presets(tables: Table) -> Table:
    """``encoder = "NAME"`` or ``encoder.preset = "NAME"`` written out, so that keys can follow."""
    encoder = tables.get("encoder")
    if isinstance(encoder, str):
        encoder = {"preset": encoder}
    if not isinstance(encoder, dict) or "preset" not in encoder:
        return tables
    name = encoder["preset"]
    if not isinstance(name, str) or name not in PRESETS:
        raise SpecError(
            f"encoder.preset: expected one of {', '.join(PRESETS)}, got {name!r}"
            f"{_nearest(str(name), PRESETS)}"
        )
    rest = {key: value for key, value in encoder.items() if key != "preset"}
    return {**tables, "encoder": merge(msgspec.to_builtins(PRESETS[name]), rest)}


def apply_override(tables: Table, setting: str) -> None:
    """Carry out one ``section.key=value`` in place; the value is TOML, or a string unquoted."""
    path, equals, text = setting.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise SpecError(
            "expected --set section.key=value, such as optimizer.learning_rate=1e-3, got "
            f"{setting!r}"
        )
    table: Any = tables
    for depth, key in enumerate(keys[:-1]):
        if isinstance(table, dict):
            child = table.setdefault(key, {})
            if isinstance(child, str) and key == "encoder":  # a preset by name
                child = table[key] = with_presets(tables)["encoder"]
            table = child
        else:
            table = _item(table, key, ".".join(keys[:depth]))
    parent = ".".join(keys[:-1])
    if isinstance(table, dict):
        value = parse_value(text.strip())
        if keys[-1] == "kind" and table.get("kind") != value:
            table.clear()  # what belongs to another kind means nothing here
        table[keys[-1]] = value
    elif isinstance(table, list):
        _item(table, keys[-1], parent)
        table[int(keys[-1])] = parse_value(text.strip())
    else:
        raise SpecError(f"{parent}: expected a table to set {keys[-1]!r} in, got {table!r}")


def _item(values: Any, key: str, where: str) -> Any:
    """Element `key` of a list."""
    if not isinstance(values, list):
        raise SpecError(f"{where}: expected a table to set {key!r} in, got {values!r}")
    if not key.isdigit() or int(key) >= len(values):
        raise SpecError(f"{where}: expected an index below {len(values)}, got {key!r}")
    return values[int(key)]


def parse_value(text: str) -> Any:
    """A TOML value; what is none is a string, and a list's elements are read one by one."""
    try:
        return msgspec.toml.decode(f"value = {text}".encode())["value"]
    except msgspec.DecodeError:
        if text.startswith("[") and text.endswith("]"):
            return [parse_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return text


def convert(tables: Table, kind: type[T], source: str) -> T:
    """The struct of `tables`.

    Raises
    ------
    SpecError
        Unknown keys, all of them by their full path, each with the nearest name that is known;
        or a value of a wrong type, with its path, what was expected, and what came.
    """
    unknown = list(_unknown(tables, kind, ""))
    if unknown:
        raise SpecError(f"{source}: {'; '.join(unknown)}")
    try:
        return msgspec.convert(tables, kind)
    except msgspec.ValidationError as error:
        raise SpecError(f"{source}: {_explained(str(error), tables, kind)}") from error


def _unknown(value: Any, hint: Any, path: str) -> Iterator[str]:
    """What to say of every unknown key below `value`, which should be a `hint`."""
    if isinstance(value, list):
        arguments = [a for a in _members(hint) if get_origin(a) in (list, tuple)]
        for argument in arguments[:1]:
            inner = get_args(argument)
            for index, item in enumerate(value):
                element = (
                    inner[0] if inner[1:] in ((), (...,)) else inner[min(index, len(inner) - 1)]
                )
                yield from _unknown(item, element, f"{path}.{index}")
    if not isinstance(value, dict):
        return
    struct = _struct_of(value, hint)
    if struct is None:
        return
    hints = get_type_hints(struct)
    fields = {field.encode_name: hints[field.name] for field in msgspec.structs.fields(struct)}
    tag = struct.__struct_config__.tag_field
    known = [*fields, *([tag] if tag else [])]
    for key, item in value.items():
        where = f"{path}.{key}" if path else str(key)
        if key in fields:
            yield from _unknown(item, fields[key], where)
        elif key not in known:
            kind = f" of kind {value[tag]!r}" if tag and tag in value else ""
            listed = f"; known{kind}: {', '.join(known)}" if len(known) < 30 else ""
            yield f"unknown key {where}{_nearest(str(key), known) or listed}"


def _members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _struct_of(value: Mapping[str, Any], hint: Any) -> type[msgspec.Struct] | None:
    """Which struct of `hint` a table stands for, by its tag where there are several."""
    structs = [m for m in _members(hint) if isinstance(m, type) and issubclass(m, msgspec.Struct)]
    if len(structs) == 1:
        return structs[0]
    for struct in structs:
        config = struct.__struct_config__
        if config.tag_field and value.get(config.tag_field) == config.tag:
            return struct
    return None


def _explained(message: str, tables: Table, kind: type[msgspec.Struct]) -> str:
    """msgspec's message with the path first, what would be right, and the value that came."""
    what, at, path = message.rpartition(" - at `$.")
    if not at:
        return message
    keys = path.rstrip("`").replace("[", ".").replace("]", "").split(".")
    value: Any = tables
    hint: Any = kind
    for key in keys:
        value, hint = _below(value, hint, key)
    choices = _choices(hint, keys[-1])
    what = f"expected one of {', '.join(map(str, choices))}" if choices else _lower(what)
    if isinstance(value, (str, int, float, bool, list)):
        came = f", got {value!r}" if choices else f" ({value!r})"
        near = _nearest(value, map(str, choices)) if isinstance(value, str) else ""
        return f"{'.'.join(keys)}: {what}{came}{near}"
    return f"{'.'.join(keys)}: {what}"


def _below(value: Any, hint: Any, key: str) -> tuple[Any, Any]:
    """What lies at `key` of a table or list, and the type it should have; None where unknown.

    The type of a union's tag is the union itself.
    """
    if isinstance(value, list):
        inside = value[int(key)] if key.isdigit() and int(key) < len(value) else None
        element = next((get_args(m)[0] for m in _members(hint) if get_args(m)), None)
        return inside, element
    if not isinstance(value, dict):
        return None, None
    struct = _struct_of(value, hint)
    if struct is None:
        return value.get(key), hint
    return value.get(key), get_type_hints(struct).get(key)


def _choices(hint: Any, key: str) -> tuple[Any, ...]:
    """What a string can be: the literals of its type, or the tags of a union of structs."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    configs = [getattr(member, "__struct_config__", None) for member in _members(hint)]
    return tuple(c.tag for c in configs if c is not None and c.tag_field == key)


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _nearest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""
