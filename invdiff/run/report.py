"""`report.html`: one self-contained page a run, made from what the run has on disk."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from invdiff.domain import Figure
from invdiff.prior.prior import PriorCard
from invdiff.run.directory import write_text

CLAIMS = {
    "exact": "Samples of the exact posterior under this prior, up to the step size.",
    "gaussian": "Exact for Gaussian priors and linear operators; approximate for this one.",
    "consistent": "Weighted samples that converge to the posterior with more particles.",
    "approximate": "Approximate posterior samples: the spread is meant as uncertainty and is checked "
    "below where a reference is known.",
    "heuristic": "A heuristic: no law of its samples is known, and their spread is not calibrated.",
    "point": "A point estimator: the spread of its samples is not an uncertainty.",
}

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; max-width: 1180px; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem;
  border-bottom: 1px solid #d8dee4; padding-bottom: .2rem } h3 { font-size: 1rem; margin: 1.2rem 0 .3rem }
.sub { color: #59636e; margin: .2rem 0 1rem } img { max-width: 100%; display: block }
table { border-collapse: collapse; margin: .4rem 0 } td, th { padding: .18rem .8rem .18rem 0;
  text-align: right; font-variant-numeric: tabular-nums; vertical-align: top }
td:first-child, th:first-child { text-align: left } th { color: #59636e; font-weight: 600 }
tr.best td { font-weight: 650 } tr.ours td { background: #eef6ff }
.warn { background: #fff6e0; border-left: 4px solid #e0a800; padding: .4rem .8rem; margin: .5rem 0 }
.claim { background: #f2f5f8; padding: .4rem .8rem; margin: .5rem 0 }
table.facts td { text-align: left } .cols { display: flex; flex-wrap: wrap; gap: 0 3rem }
pre { background: #f6f8fa; padding: .8rem; overflow-x: auto; font-size: 12px }
footer { color: #59636e; margin: 2.5rem 0 1rem; font-size: 13px }
"""


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.4f}"
    return html.escape(str(value))


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    if not rows:
        return "<p>No reference is known for this item: nothing to compare with.</p>"
    columns = list(next(iter(rows.values())))
    leading = "psnr" if "psnr" in columns else columns[0]
    best = max(rows, key=lambda name: rows[name].get(leading, 0.0))
    heads = "".join(f"<th>{html.escape(_heading(column))}</th>" for column in columns)
    body = []
    for name, values in rows.items():
        classes = ("best " if name == best else "") + ("ours" if name.startswith("posterior") else "")
        cells = "".join(f"<td>{_number(values[column])}</td>" for column in columns)
        body.append(f'<tr class="{classes}"><td>{html.escape(name)}</td>{cells}</tr>')
    return f"<table><tr><th>method</th>{heads}</tr>{''.join(body)}</table>"


def _heading(column: str) -> str:
    names = {
        "psnr": "PSNR (dB)",
        "ssim": "SSIM",
        "nmse": "NMSE",
        "ssim_masked": "SSIM in the object",
        "psnr_magnitude": "PSNR of |x| (dB)",
    }
    return names.get(column, column)


def _facts(values: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(key))}</td><td>{_number(value)}</td></tr>" for key, value in values.items()
    )
    return f'<table class="facts">{rows}</table>'


def _picture(run: Path, figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode()
    title, caption = html.escape(figure.title), html.escape(figure.caption)
    return (
        f"<h3>{title}</h3><img alt='{title}' src='data:image/png;base64,{data}'><p class='sub'>{caption}</p>"
    )


def calibration_sentence(item: Mapping[str, Any]) -> str | None:
    """What the coverage of the std map says, within ten points of nominal or not."""
    facts = item["facts"]
    if "within_1_std" not in facts or item["claim"] == "point":
        return None
    one, two = 100 * facts["within_1_std"], 100 * facts["within_2_std"]
    good = abs(one - 68.3) <= 10 and abs(two - 95.4) <= 10
    verdict = "within ten points of nominal" if good else "NOT calibrated: do not read it as an error bar"
    return (
        f"The std map is {verdict}: {one:.0f} % of the object's pixels lie within 1 std of the mean "
        f"(nominal 68) and {two:.0f} % within 2 (nominal 95)."
    )


def answers(item: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, float]:
    """What a sample that answers the question cost, where there is one."""
    if "network_calls_per_answer" not in item:
        return {}
    return {
        "network calls an answer": item["network_calls_per_answer"],
        "seconds an answer": seconds["sampling_per_answer"],
    }


def write_report(
    run: Path,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    timing: Mapping[str, Any],
    figures: Sequence[Sequence[Figure]],
    card: PriorCard,
) -> None:
    """Write `report.html` of a run whose other files exist."""
    from omegaconf import OmegaConf

    domain, operator = config["domain"]["name"], config["operator"]["name"]
    sampler = config["sampler"]["name"]
    parts = [
        f"<h1>{html.escape(domain)} / {html.escape(operator)} / {html.escape(sampler)}</h1>",
        f"<p class='sub'>{config['samples']} samples, seed {config['seed']}, prior "
        f"{html.escape(card.name)}. Not for clinical use.</p>",
    ]
    for (name, item), pictures in zip(metrics.items(), figures, strict=True):
        parts.append(f"<h2>{html.escape(name)}</h2>")
        parts.append(f"<p class='claim'>{CLAIMS[item['claim']]}</p>")
        sentences = list(item["warnings"])
        calibration = calibration_sentence(item)
        if calibration and "NOT" in calibration:
            sentences.append(calibration)
        elif calibration:
            parts.append(f"<p class='claim'>{html.escape(calibration)}</p>")
        parts += [f"<p class='warn'>{html.escape(text)}</p>" for text in sentences]
        parts.append(_picture(run, pictures[0]) if pictures else "")
        parts += [_picture(run, figure) for figure in pictures[1:]]
        parts.append("<h3>Metrics</h3>" + _table(item["table"]))
        if item["table"]:
            parts.append(f"<p class='sub'>{html.escape(item['convention'])}</p>")
        residual = item["chi2_per_sample"]
        facts = {
            "data residual of a sample (χ² per measured component)": sum(residual) / len(residual),
            "data residual of the mean": item["chi2_of_mean"],
            **item["facts"],
            "network calls a sample": item["network_calls_per_sample"],
            "network calls shared by all samples": item["network_calls_shared"],
            "seconds sampling": timing[name]["sampling"],
            **answers(item, timing[name]),
            "seconds on the classical methods": timing[name]["baselines"],
        }
        parts.append("<div class='cols'><div><h3>Checks</h3>" + _facts(facts) + "</div>")
        parts.append("<div><h3>The data</h3>" + _facts(item["notes"]) + "</div></div>")
        parts.append(
            "<p class='sub'>χ² is near 1 for posterior samples; the mean lies below, since part of the "
            "noise is averaged away.</p>"
        )
    prior = {
        "name": card.name,
        "unit 1 is": card.scale,
        "trained on": card.data or "–",
        "licence": card.licence or "–",
        "limits": card.limits or "–",
    }
    parts.append("<h2>Prior</h2>" + _facts(prior))
    settings = html.escape(OmegaConf.to_yaml(OmegaConf.create(dict(config))))
    parts.append(f"<h2>Settings</h2><pre>{settings}</pre>")
    parts.append("<footer>Made by invdiff. Not for clinical use.</footer>")
    title = html.escape(f"{domain} {operator} {sampler}")
    page = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title>"
        f"<style>{STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )
    write_text(run / "report.html", page)
