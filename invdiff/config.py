"""Configuration: Hydra's compose API over `configs/` and the plug-ins' folders.

A YAML names things (`name: dds`) and gives keyword arguments; it never names a
Python target.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.errors import InputError, unknown_name
from invdiff.registry import plugins

GROUPS = ("domain", "operator", "prior", "sampler", "noise", "start", "run")


def config_folder() -> Path:
    """`configs/`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").exists():
            return folder
    raise InputError("the configs folder of invdiff is missing; reinstall the package")


def search_folders() -> list[Path]:
    """Our folder, then those of the plug-ins (`invdiff.configs` entry points)."""
    folders = [config_folder()]
    for plugin in plugins("configs").values():
        module = importlib.import_module(plugin.target)
        folders.extend(Path(path) for path in module.__path__)
    return folders


def choices(group: str) -> dict[str, Path]:
    """The YAML files of a group by name."""
    found: dict[str, Path] = {}
    for folder in search_folders():
        for path in sorted((folder / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def first_comment(path: Path) -> str:
    """What a setting's file says of itself in its first line; empty where that is no comment."""
    with path.open() as file:
        line = file.readline().strip()
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def _peek(group: str, name: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    known = choices(group)
    if name not in known:
        raise unknown_name(group, name, known)
    loaded = OmegaConf.to_container(OmegaConf.load(known[name]))
    return dict(loaded) if isinstance(loaded, dict) else {}  # type: ignore[arg-type]


def complete(overrides: Sequence[str]) -> list[str]:
    """Fill the groups that were not chosen from those that were.

    An operator says its domain and may say what it needs beside it, a prior the sampler that
    it needs; a domain says its default operator, prior and sampler (`chooses`) and other values (`sets`).
    Contradictions and unknown names are refused.
    """
    chosen: dict[str, str] = {}
    rest = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InputError(f"expected key=value, found {override!r}")
        if key in GROUPS:
            if chosen.get(key, value) != value:
                raise InputError(f"{key} is given twice: {chosen[key]!r} and {value!r}")
            chosen[key] = value
        elif (key == "input.axes" and re.fullmatch(r"[a-z]+(,[a-z]+)+", value)) or (
            key.endswith((".smarts", ".smiles", ".reference")) and value[:1] not in ("'", '"')
        ):
            rest.append(f'{key}="{value}"')  # commas and brackets mean something to Hydra unless quoted
        elif key.startswith("sampler."):
            rest.append(f"++{override}")  # its file names the usual settings; the method knows them all
        else:
            rest.append(override)
    for group, name in chosen.items():
        known = choices(group)
        if name not in known:
            raise unknown_name(group, name, known)
    if "domain" not in chosen:
        chosen["domain"] = "mri"
        if "operator" in chosen:
            chosen["domain"] = str(_peek("operator", chosen["operator"]).get("domain", "mri"))
    domain = _peek("domain", chosen["domain"])
    defaults = dict(domain.get("chooses", {}))
    operator = chosen.get("operator", defaults.get("operator"))
    asked: dict[str, Any] = {}
    if operator is not None and operator in choices("operator"):
        asked = dict(_peek("operator", str(operator)).get("chooses", {}))
    defaults |= asked
    prior = chosen.get("prior", defaults.get("prior"))
    if prior is not None and prior in choices("prior"):
        defaults |= dict(_peek("prior", str(prior)).get("chooses", {}))
    if "prior" in asked and "prior" not in chosen:
        defaults |= asked  # an operator that brings its prior knows which sampler suits both
    first = [f"{key}={value}" for key, value in dict(domain.get("sets", {})).items()]
    for group, name in defaults.items():
        chosen.setdefault(str(group), str(name))
    wanted = _peek("operator", chosen["operator"]).get("domain", chosen["domain"])
    if wanted != chosen["domain"]:
        raise InputError(
            f"operator {chosen['operator']!r} belongs to domain {wanted!r}, not to {chosen['domain']!r}"
        )
    for group in GROUPS:
        chosen.setdefault(group, {"run": "default", "start": "prior"}.get(group, "auto"))
    return [f"{group}={chosen[group]}" for group in GROUPS] + first + rest


def compose(overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The resolved configuration as plain data.

    Raises:
        InputError: for unknown groups, names or keys, with what is known.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    full = complete(overrides)
    extra = [f"file://{folder}" for folder in search_folders()[1:]]
    if extra:
        full.append("hydra.searchpath=[" + ",".join(extra) + "]")
    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            composed = hydra_compose("config", overrides=full)
        missing = sorted(OmegaConf.missing_keys(composed))
        config = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ or error
        first = str(cause).strip().splitlines()[0] if str(cause).strip() else str(error)
        raise InputError(f"the configuration does not compose: {first}") from None
    if missing:
        raise InputError(
            f"{' and '.join(missing)} must be given, as in {' '.join(f'{key}=VALUE' for key in missing)}"
        )
    assert isinstance(config, dict)
    plain: dict[str, Any] = {str(key): value for key, value in config.items()}
    refuse_targets(plain)
    return plain


def refuse_targets(config: object, path: str = "") -> None:
    """Refuse `_target_` anywhere: configuration is data."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key == "_target_":
                raise InputError(
                    f"{path or 'the configuration'} has a _target_; name a registered plug-in instead"
                )
            refuse_targets(value, f"{path}.{key}".lstrip("."))
    elif isinstance(config, list | tuple):
        for value in config:
            refuse_targets(value, path)
