"""Curves on logarithmic axes as an SVG picture, readable on light and dark pages; the numbers are in its metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Final
from xml.sax.saxutils import escape

Curve = Sequence[tuple[float, float]]

WIDTH: Final = 860
HEIGHT: Final = 440
LEFT: Final = 70
RIGHT: Final = 230
TOP: Final = 50
BOTTOM: Final = 50
COLORS: Final = (
    "#3b82f6",
    "#ef4444",
    "#10b981",
    "#f59e0b",
    "#8b5cf6",
    "#ec4899",
    "#14b8a6",
    "#a16207",
    "#64748b",
    "#84cc16",
)
STYLE: Final = """text { font: 13px sans-serif; fill: #1f2328 } .title { font-size: 16px; font-weight: 600 }
.grid { stroke: #8884; stroke-width: 1 } .curve { fill: none; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }"""


def draw_curves(title: str, x_name: str, y_name: str, curves: Mapping[str, Curve], notes: Mapping[str, object]) -> str:
    """Return the picture. Values are above 0; notes: about the measurement, kept beside the numbers."""
    x_low, x_high = _decades([x for curve in curves.values() for x, _ in curve])
    y_low, y_high = _decades([y for curve in curves.values() for _, y in curve])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (math.log10(y) - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<metadata>{escape(json.dumps({**notes, 'curves': curves}))}</metadata>",
        f"<style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="28">{escape(title)}</text>',
    ]
    for power in range(x_low, x_high + 1):
        x, bottom = place(10.0**power, 10.0**y_low)
        parts += [_line(x, TOP, x, bottom), _text(x, bottom + 20, _short(10.0**power), "middle")]
    for power in range(y_low, y_high + 1):
        left, y = place(10.0**x_low, 10.0**power)
        parts += [_line(left, y, WIDTH - RIGHT, y), _text(left - 8, y + 4, _short(10.0**power), "end")]
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x_name, "middle"))
    parts.append(_text(LEFT, TOP - 8, y_name, "end"))
    for number, (name, curve) in enumerate(curves.items()):
        color = COLORS[number % len(COLORS)]
        points = [place(x, y) for x, y in curve]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline class="curve" stroke="{color}" points="{path}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{color}"/>' for x, y in points]
        y = TOP + 10 + 24 * number
        x = WIDTH - RIGHT + 20
        parts.append(f'<line x1="{x}" y1="{y}" x2="{x + 22}" y2="{y}" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(x + 30, y + 4, name, "start"))
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _short(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ") if value >= 1 else f"{value:g}"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="grid" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
