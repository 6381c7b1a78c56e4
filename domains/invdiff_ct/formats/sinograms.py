"""Sinograms in npy and npz, with the geometry in a YAML or beside them in the npz.

beam: parallel            # parallel | fan_flat | fan_curved
angles_deg: [0, 1, 2]     # or angles_rad, or {start: 0, stop: 180, count: 180}
pitch_mm: 1.0             # detector spacing; without it lengths are relative and there are no HU
centre: 127.5             # detector index under the axis; left out: found, or the middle
source_axis_mm: 541       # of a fan
axis_detector_mm: 408
kind: line_integral       # or counts, with
flux: 1e5                 # photons of an unattenuated ray
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from invdiff import InputError
from invdiff_ct.formats.options import ReadOptions
from invdiff_ct.geometry import BEAMS, Geometry
from invdiff_ct.scan import Projections, check_angles, check_counts, finite

KEYS = {
    "beam",
    "angles_deg",
    "angles_rad",
    "pitch_mm",
    "centre",
    "source_axis_mm",
    "axis_detector_mm",
    "kind",
    "flux",
}


def load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npy (as `array`) or npz, without unpickling."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"array": loaded}
        with loaded:
            return {key: loaded[key] for key in loaded.files}
    except (ValueError, OSError, EOFError, KeyError) as error:
        raise InputError(f"{path.name} is not a numpy file ({error})") from None


def _beside(path: Path, options: ReadOptions) -> Path | None:
    if options.geometry_file is not None:
        if not options.geometry_file.is_file():
            raise InputError(f"there is no geometry file {options.geometry_file}")
        return options.geometry_file
    found = [path.with_suffix(ending) for ending in (".yaml", ".yml")]
    return next((file for file in found if file.is_file()), None)


def is_sinogram(path: Path, arrays: Mapping[str, np.ndarray], options: ReadOptions) -> bool:
    """Whether the arrays are projections and not images."""
    return "sinogram" in arrays or ("array" in arrays and _beside(path, options) is not None)


def read_geometry(path: Path) -> dict[str, Any]:
    """The settings of a geometry file.

    Raises:
        InputError: for a file that is no mapping, or keys that are unknown.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path.name} is not YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path.name} is not a mapping of geometry settings")
    unknown = set(content) - KEYS
    if unknown:
        raise InputError(
            f"{path.name} does not know {', '.join(sorted(map(str, unknown)))} "
            f"(it knows: {', '.join(sorted(KEYS))})"
        )
    return content


def angles_of(settings: Mapping[str, Any], name: str) -> np.ndarray:
    """Angles in radians from `angles_deg` or `angles_rad`."""
    given = [key for key in ("angles_deg", "angles_rad") if settings.get(key) is not None]
    if len(given) != 1:
        raise InputError(f"{name} gives {' and '.join(given) or 'no angles'}; give angles_deg or angles_rad")
    values = settings[given[0]]
    if isinstance(values, Mapping):
        try:
            count = int(values["count"])
            values = np.linspace(float(values["start"]), float(values["stop"]), count, endpoint=False)
        except (KeyError, TypeError, ValueError):
            raise InputError(f"the angles of {name} are a range without start, stop and count") from None
    try:
        array = np.atleast_1d(np.asarray(values, dtype=np.float64)).ravel()
    except (TypeError, ValueError):
        raise InputError(f"the angles of {name} are not numbers") from None
    return check_angles(array, name, given[0].removeprefix("angles_"))


def arranged(values: np.ndarray, views: int, axes: str | None, name: str) -> np.ndarray:
    """The sinogram as [row, view, detector]."""
    if np.iscomplexobj(values) or values.dtype.kind not in "iuf" or values.ndim not in (2, 3):
        raise InputError(
            f"{name} is {values.dtype} of shape {values.shape}; expected a real sinogram, 2 or 3 axes"
        )
    wanted = ("row", "angle", "detector")[-values.ndim :]
    if axes is not None:
        names = tuple(part.strip() for part in axes.split(","))
        if sorted(names) != sorted(wanted):
            raise InputError(f"input.axes is {axes!r}; {name} needs {', '.join(wanted)} in its own order")
        values = np.transpose(values, [names.index(part) for part in wanted])
    elif values.shape[-2] != views:
        hits = [axis for axis in range(values.ndim) if values.shape[axis] == views]
        if len(hits) == 1:
            order = list(wanted)
            rest = [part for part in wanted if part != "angle"]
            order = [("angle" if axis in hits else rest.pop(0)) for axis in range(values.ndim)]
            if values.ndim == 3 or order != list(wanted):
                raise InputError(
                    f"{name} has shape {values.shape} and {views} angles, so its axes look swapped: "
                    f"angles are axis {hits[0]}; give input.axes={','.join(order)}"
                )
    if values.shape[-2] != views:
        raise InputError(
            f"{name} has shape {values.shape} and {views} angles are given; no axis has that length"
            if views not in values.shape
            else f"{name} has {values.shape[-2]} views along its angle axis and {views} angles are given"
        )
    return finite((values if values.ndim == 3 else values[None]).astype(np.float64), name)


def read(path: Path, arrays: Mapping[str, np.ndarray], options: ReadOptions) -> Projections:
    """A sinogram [view, detector], or [row, view, detector], with its geometry."""
    settings: dict[str, Any] = {}
    if "theta_deg" in arrays:
        settings["angles_deg"] = arrays["theta_deg"]
    for key in KEYS & set(arrays):
        value = arrays[key]
        settings[key] = value.item() if value.ndim == 0 else value
    file = _beside(path, options)
    if file is not None:
        settings |= read_geometry(file)
    angles = angles_of(settings, path.name)
    raw = arrays["sinogram"] if "sinogram" in arrays else arrays["array"]
    axes = options.axes
    if axes is None and "theta_deg" in arrays and raw.ndim == 3 and raw.shape[0] == len(angles):
        axes = "angle,row,detector"  # the layout of tomopy
    sinogram = arranged(raw, len(angles), axes, path.name)
    return make(sinogram, angles, settings, options, path.name)


def make(
    sinogram: np.ndarray,
    angles: np.ndarray,
    settings: Mapping[str, Any],
    options: ReadOptions,
    name: str,
) -> Projections:
    """Projections from their parts, with kind and flux checked."""
    kind = str(options.kind or settings.get("kind") or "line_integral")
    if kind not in ("line_integral", "counts"):
        raise InputError(f"the data of {name} are {kind!r}; expected line_integral or counts")
    check_counts(sinogram, kind, name)
    flux = options.flux if options.flux is not None else settings.get("flux")
    if kind == "counts" and (flux is None or not float(flux) > 0):
        raise InputError(
            f"{name} holds counts and the flux is {flux}; give operator.flux=, photons of an open ray"
        )
    beam = str(settings.get("beam", "parallel"))
    if beam not in BEAMS:
        raise InputError(f"the beam of {name} is {beam!r}; expected one of {', '.join(BEAMS)}")
    calibrated = settings.get("pitch_mm") is not None
    geometry = Geometry(
        angles,
        sinogram.shape[-1],
        float(settings["pitch_mm"]) if calibrated else 1.0,
        None if settings.get("centre") is None else float(settings["centre"]),
        beam,  # type: ignore[arg-type]
        float(settings.get("source_axis_mm", 541.0)),
        float(settings.get("axis_detector_mm", 408.0)),
    )
    return Projections(
        sinogram,
        geometry,
        "counts" if kind == "counts" else "line_integral",
        None if flux is None else float(flux),
        calibrated,
    )
