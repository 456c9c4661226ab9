"""What was measured: kept as JSON while it comes in, and shown as a table and a plot."""

from __future__ import annotations

import json
import statistics
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

COLUMNS = (
    *("case", "variant", "runs", "passes", "text s", "denoise s", "decode s", "total s", "against stock", "step s"),
    *("share of ceilings", "share of sustained", "peak GiB allocated / reserved", "latent error against stock"),
)
STAGES = ("text_encode", "load", "denoise", "decode")


def tried(ways: Iterable[Any], budget: float, measure: Callable[[Any, dict[str, Any]], None]) -> list[dict[str, Any]]:
    """Return a row for each way, printed as it ends; ``measure`` fills it. One that raises is a row that says so.

    Ways that would begin after ``budget`` seconds are left out.
    """
    rows: list[dict[str, Any]] = []
    began = time.perf_counter()
    for way in ways:
        row: dict[str, Any] = {"name": way.name}
        rows.append(row)
        if time.perf_counter() - began > budget:
            row["left_out"] = True
        else:
            try:
                measure(way, row)
            except Exception as problem:  # noqa: BLE001  # the others are worth having all the same
                row["raised"] = f"{type(problem).__name__}: {problem}"[:500]
                traceback.print_exc()
        print(row, flush=True)
    return rows


class Results:
    """A JSON file that a run writes after every measurement, and that a later run goes on from."""

    def __init__(self, path: Path, setting: dict[str, Any], *, fresh: bool) -> None:
        """Read what is there. Raise SystemExit where it was measured under another ``setting``."""
        self.path = path
        self.found: dict[str, Any] = {"setting": setting, "ceilings": {}, "warm_ups": [], "runs": []}
        if path.is_file() and not fresh:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["setting"] != setting:
                changed = sorted(key for key in {*setting, *kept["setting"]} if setting.get(key) != kept["setting"].get(key))
                raise SystemExit(f"{path} was measured with another {', '.join(changed)}; --fresh begins anew")
            self.found = kept

    def add(self, kind: str, row: dict[str, Any]) -> None:
        """Keep a row of ``warm_ups`` or ``runs``."""
        self.found[kind].append(row)
        self.save()

    def has(self, case: str, variant: str, repeat: int) -> bool:
        """Whether a run was measured already."""
        wanted = (case, variant, repeat)
        return any((row["case"], row["variant"], row["repeat"]) == wanted for row in self.found["runs"])

    def expected_seconds(self, case: str, variant: str) -> float | None:
        """Return how long such a run took, or its like with stock; None where nothing is known."""
        for name in (variant, "stock"):
            known = [row["seconds"] for row in self.found["runs"] if (row["case"], row["variant"]) == (case, name)]
            if known:
                return statistics.median(known)
        return None

    def save(self) -> None:
        """Write the file whole."""
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
        partial.replace(self.path)

    def rows(self) -> list[dict[str, Any]]:
        """Return one row for each case and variant: medians over its repeats, and how many there were."""
        grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for run in self.found["runs"]:
            grouped.setdefault((run["case"], run["variant"]), []).append(run)
        made = []
        for (case, variant), runs in grouped.items():
            row: dict[str, Any] = {"case": case, "variant": variant, "runs": len(runs)}
            row["stages"] = {name: _median(run["stages"].get(name, 0.0) for run in runs) for name in STAGES}
            for name in (
                "seconds",
                "step",
                "allocated_gib",
                "reserved_gib",
                "error",
                "share",
                "sustained_share",
                "adapter_seconds",
            ):
                row[name] = _median(run[name] for run in runs)
            row["passes"], row["facts"] = runs[0]["passes"], runs[0]["facts"]
            stock = _median(run["seconds"] for run in grouped.get((case, "stock"), []))
            row["speedup"] = None if stock is None else stock / row["seconds"]
            made.append(row)
        return made

    def table(self) -> str:
        """Return the measurements as Markdown."""
        setting = self.found["setting"]
        lines = [
            _environment(setting),
            "",
        ]
        for case, ceilings in self.found["ceilings"].items():
            kernels = ", ".join(f"{name} {value:.4g}" for name, value in ceilings["kernels"].items())
            lines.append(
                f"Ceilings at the length of {case}: matmul {ceilings['matmul']:.4g} TFLOP/s, attention {kernels} TFLOP/s; "
                f"floor of a pass {ceilings['floor']:.4g} s{_sustained(ceilings)}."
            )
        lines += [
            "",
            f"| {' | '.join(COLUMNS)} |",
            "|---" * len(COLUMNS) + "|",
        ]
        for row in self.rows():
            stages = row["stages"]
            cells = [
                row["case"],
                row["variant"],
                row["runs"],
                row["passes"],
                f"{stages['text_encode']:.3f}",
                f"{stages['denoise']:.2f}",
                f"{stages['decode']:.2f}",
                f"{row['seconds']:.2f}",
                "" if row["speedup"] is None else f"{row['speedup']:.2f}x",
                "" if row["step"] is None else f"{row['step']:.4f}",
                f"{100 * row['share']:.0f} %",
                "" if row["sustained_share"] is None else f"{100 * row['sustained_share']:.0f} %",
                "" if row["reserved_gib"] is None else f"{row['allocated_gib']:.1f} / {row['reserved_gib']:.1f}",
                "" if row["error"] is None else f"{row['error']:.2e}",
            ]
            lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        lines += ["", "First run with a shape (compiling, measuring, recording), seconds: "]
        lines[-1] += ", ".join(f"{row['case']} {row['variant']} {row['seconds']:.1f}" for row in self.found["warm_ups"]) or "none"
        lines += ["", *self._remarks()]
        return "\n".join(lines) + "\n"

    def _remarks(self) -> list[str]:
        remarks = [
            "Share of ceilings: what the transformer's passes would take at the measured ceilings, of what they took.",
            "Sustained: what their products and attention take alone, pass after pass, when the GPU has lowered its clocks.",
        ]
        if self.found["setting"]["weights"].startswith("random"):
            remarks.append("With random weights an error in latents says little about quality; that is judged on tiny-wan.")
        for row in self.rows():
            if row["adapter_seconds"] is not None:
                after = f"- {row['case']}, {row['variant']}: after a job without its adapter {row['adapter_seconds']:.2f} s more"
                remarks.append(after)
            if row["facts"]:
                facts = ", ".join(f"{name} {value}" for name, value in row["facts"].items())
                remarks.append(f"- {row['case']}, {row['variant']}: {facts}")
        return remarks

    def plot(self, path: Path) -> None:
        """Draw the stages of every variant, case by case."""
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot as plt

        rows = self.rows()
        cases = list(dict.fromkeys(row["case"] for row in rows))
        if not cases:
            return
        figure, axes = plt.subplots(len(cases), 1, figsize=(9, 0.6 + 1.9 * len(cases)), squeeze=False, layout="constrained")
        colours = {"text_encode": "#8aa0b8", "load": "#c9b458", "denoise": "#2f6d9e", "decode": "#d3803c"}
        for axis, case in zip(axes[:, 0], cases, strict=True):
            shown = [row for row in rows if row["case"] == case]
            names = [row["variant"] for row in shown]
            left = [0.0] * len(shown)
            for stage in STAGES:
                widths = [row["stages"][stage] for row in shown]
                axis.barh(names, widths, left=left, color=colours[stage], label=stage)
                left = [before + width for before, width in zip(left, widths, strict=True)]
            for index, row in enumerate(shown):
                note = f" {row['seconds']:.2f} s" + ("" if row["speedup"] is None else f", {row['speedup']:.2f}x")
                axis.text(left[index], index, note, va="center", fontsize=8)
            axis.invert_yaxis()
            axis.set_title(case, fontsize=10, loc="left")
            axis.set_xlabel("seconds")
            axis.margins(x=0.18)
        axes[0, 0].legend(fontsize=7, loc="lower right")
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _environment(setting: dict[str, Any]) -> str:
    software = f"driver {setting['driver']}, torch {setting['torch']}, diffusers {setting['diffusers']}"
    return f"{setting['device']}, {software}, wan-host {setting['commit']}, {setting['date']}; {setting['weights']}."


def _sustained(ceilings: dict[str, Any]) -> str:
    return "" if ceilings["sustained_floor"] is None else f", sustained {ceilings['sustained_floor']:.4g} s"


def _median(values: Any) -> float | None:
    present = [value for value in values if value is not None]
    return statistics.median(present) if present else None
