"""A calibration as text."""

from __future__ import annotations

from tabulate import tabulate

from harness.model.calibration import CalibrationResult

__all__ = ["calibration_line", "calibration_table"]


def calibration_line(found: CalibrationResult) -> str:
    """What may be claimed, in one line."""
    state = "sound" if found.sound else "NOT SOUND"
    text = f"calibration: {state}, network downtime ±{found.network_resolution_ms:.2f} ms"
    if found.network_worst_ms is not None and found.network_bias_ms is not None:
        text += f" (worst error of {len(found.outages)} known outages {found.network_worst_ms:.2f} ms, median {found.network_bias_ms:+.2f} ms)"
    exact = sum(each.injected == each.dropped_by_host for each in found.drops)
    return text + (f", drops on purpose exact in {exact} of {len(found.drops)}" if found.drops else "")


def calibration_table(found: CalibrationResult) -> str:
    """Every trial beside its truth, then what the published estimators made of the same packets."""
    parts = [f"{found.scenario}, {found.accelerator}, one packet every {found.interval_ms:g} ms"]
    nulls = [
        [each.stream, each.lost, each.duplicated, each.reordered, each.unexplained, _ms(each.max_delay_ms), _ms(each.longest_gap_ms)]
        for each in found.null
    ]
    heads = ["nothing done", "lost", "dup", "reord", "unexplained", "max delay ms", "longest gap ms"]
    parts.append(tabulate(nulls, headers=heads, tablefmt="simple"))
    if found.outages:
        names = list(found.outages[0].measured_ms)
        rows = [
            [
                f"{each.injected_ms:g} ms", f"{each.truth_ms:.3f}", _ms(None if each.clock_step_ms is None else -each.clock_step_ms),
                *(_error(each.measured_ms.get(name), each.truth_ms) for name in names), each.lost,
            ]
            for each in found.outages
        ]  # fmt: skip
        heads = ["outage", "truth ms", "guest's clock lost", *(f"{name}: error" for name in names), "lost"]
        parts.append(tabulate(rows, headers=heads, tablefmt="simple", disable_numparse=True))
        estimators = [[name, "no value" if worst is None else f"{worst:.3f}"] for name, worst in found.estimators_worst_ms.items()]
        parts.append(tabulate(estimators, headers=["estimator", "worst error ms"], tablefmt="simple", disable_numparse=True))
    if found.drops:
        rows = [[str(each.injected), str(each.dropped_by_host), str(each.lost), str(each.unexplained)] for each in found.drops]
        parts.append(tabulate(rows, headers=["dropped on purpose", "dropped_by_host", "lost", "unexplained"], tablefmt="simple"))
    parts.append(calibration_line(found))
    parts += [f"problem: {problem}" for problem in found.problems]
    return "\n\n".join(parts)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _error(measured: float | None, truth: float) -> str:
    return "not found" if measured is None else f"{measured - truth:+.3f}"
