"""Plug-ins through entry points: ours and a third party's come in by the same door.

Groups: `invdiff.domains`, `invdiff.operators`, `invdiff.noises`, `invdiff.priors`,
`invdiff.samplers`, `invdiff.networks`, `invdiff.configs`. Listing them imports
nothing; a plug-in is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import EntryPoint, entry_points
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from invdiff.errors import InputError, unknown_name

T = TypeVar("T")

GROUPS = ("domains", "operators", "noises", "priors", "samplers", "networks", "configs")

# The extra of ours that brings a module; see `missing_extra`.
EXTRAS = {
    "h5py": "mri",
    "ismrmrd": "mri",
    "nibabel": "mri",
    "sigpy": "mri",
    "pywt": "mri",
    "pydicom": "mri",
    "PIL": "mri",
    "diffusers": "diffusers",
    "tifffile": "superres",
    "SimpleITK": "deformation",
    "rdkit": "molecule",
    "torch_geometric": "molecule",
    "fcd_torch": "molecule",
}


@dataclass(frozen=True)
class Plugin:
    """One registered name: where it is, and which distribution brought it."""

    group: str
    name: str
    target: str
    distribution: str
    version: str
    entry: EntryPoint


def plugins(group: str) -> dict[str, Plugin]:
    """The plug-ins of a group by name.

    Raises:
        InputError: where two distributions claim one name; it names both.
    """
    found: dict[str, Plugin] = {}
    for entry in entry_points(group=f"invdiff.{group}"):
        source = entry.dist
        distribution = "unknown" if source is None else source.name
        version = "" if source is None else source.version
        plugin = Plugin(group, entry.name, entry.value, distribution, version, entry)
        known = found.get(entry.name)
        if known is not None and known.target != plugin.target:
            raise InputError(
                f"two distributions claim the {group.removesuffix('s')} {entry.name!r}: "
                f"{known.distribution} and {plugin.distribution}; uninstall one of them"
            )
        found[entry.name] = plugin
    return found


def load(group: str, name: str) -> Any:
    """The object that a name stands for.

    Raises:
        InputError: for an unknown name (with the nearest), or a missing extra.
    """
    known = plugins(group)
    if name not in known:
        raise unknown_name(group.removesuffix("s"), name, known)
    try:
        return known[name].entry.load()
    except ModuleNotFoundError as error:
        raise missing_extra(error) from None


def missing_extra(error: ModuleNotFoundError) -> InputError:
    """One line for an optional package that is not installed."""
    module = (error.name or "").partition(".")[0]
    extra = EXTRAS.get(module)
    command = f"pip install 'invdiff[{extra}]'" if extra else f"pip install {module}"
    return InputError(f"the package {module!r} is needed for this and is not installed: {command}")


def construct(kind: type[T], settings: Mapping[str, Any], used: set[str], what: str) -> T:
    """`kind(**settings)` for a dataclass, refusing keys that it does not have and values of another type."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    unknown = set(settings) - known - used
    if unknown:
        raise InputError(
            f"{what} does not know {', '.join(sorted(unknown))} (it knows: {', '.join(sorted(known | used))})"
        )
    types = get_type_hints(kind)
    given = {key: value for key, value in settings.items() if key in known}
    for key, value in given.items():
        if not _fits(value, types[key]):
            raise InputError(f"{what}: {key} is {value!r}; expected {_words(types[key])}")
    return kind(**given)


def _fits(value: object, wanted: Any) -> bool:
    """Whether a setting is of a plain type; what is no plain type (a schedule, a model) is not looked at."""
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return value in get_args(wanted)
    if wanted is type(None):
        return value is None
    if wanted is bool:
        return isinstance(value, bool)
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    return not (wanted is str and not isinstance(value, str))


def _words(wanted: Any) -> str:
    """A type as a user would say it."""
    if get_origin(wanted) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(wanted))
    if get_origin(wanted) is Literal:
        return " or ".join(str(one) for one in get_args(wanted))
    plain = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a word",
        type(None): "null",
    }
    return plain.get(wanted, "something else")
