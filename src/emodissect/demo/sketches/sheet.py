"""The canvas for drawing a face: strokes in face coordinates, posed together, rendered at 48 x 48 pixels.

In face coordinates, x points right, y points down, and half a head's width is 1. Points are lifted onto an ellipsoid,
rotated by the pose and scaled to a canvas with four times the resolution of the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.appearance import Appearance

SIZE = 48
_FINE = 4  # canvas pixels per image pixel
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_STEPS = np.linspace(0.0, 1.0, 9)
# Quadratic Bezier weights, for a middle point on the curve instead of a control point.
_BEZIER = np.stack([(1 - _STEPS) ** 2, 2 * _STEPS * (1 - _STEPS), _STEPS**2], 1)
_THROUGH = _BEZIER @ np.array([[1.0, 0.0, 0.0], [-0.5, 2.0, -0.5], [0.0, 0.0, 1.0]])
_ANGLES = np.linspace(0, 2 * np.pi, 18, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], 1)
_ROWS, _COLUMNS = (np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5).astype(np.float32)

Points = NDArray[np.float64]
Pair = tuple[float, float]


def bow(start: Pair, middle: Pair, end: Pair) -> Points:
    """Nine points of a curve from start to end that passes through ``middle`` halfway."""
    curve: Points = _THROUGH @ np.array((start, middle, end))
    return curve


def oval(x: float, y: float, width: float, height: float) -> Points:
    """An ellipse about (x, y) with the given half axes."""
    return _CIRCLE * (width, height) + (x, y)


def area(*corners: Pair) -> Points:
    """The points of a polygon or polyline."""
    return np.array(corners)


class _Stroke(NamedTuple):
    points: Points
    shade: float
    width: float  # line width in image pixels; 0 fills, -1 fills the shadow canvas
    lift: float
    flat: bool
    closed: bool


class Sheet:
    """A list of strokes, sharp ones and soft shadows, rendered with one pose, light and camera."""

    def __init__(self, appearance: Appearance) -> None:
        self.look = appearance
        self.rng = np.random.default_rng(appearance.texture)
        self._strokes: list[_Stroke] = []

    def skin(self, factor: float) -> float:
        """A shade of the skin; a factor below 1 is darker, above 1 lighter."""
        return self.look.skin * factor

    def fill(self, points: Points, shade: float, lift: float = 0.0, flat: bool = False) -> None:
        """Adds a filled patch; ``lift`` raises it off the head, ``flat`` patches (outlines) do not turn with it."""
        self._strokes.append(_Stroke(points, shade, 0.0, lift, flat, True))

    def line(
        self, points: Points, shade: float, width: float, lift: float = 0.0, flat: bool = False, closed: bool = False
    ) -> None:
        """Adds a line; ``width`` is in pixels of the 48 x 48 image."""
        self._strokes.append(_Stroke(points, shade, width, lift, flat, closed))

    @property
    def beard(self) -> float:
        """The shade of chin and mouth area: skin, or beard."""
        return self.skin(1 - self.look.beard) + self.look.hair * self.look.beard

    def crease(self, points: Points, strength: float, width: float = 0.8, bearded: bool = False) -> None:
        """Adds a skin crease of a strength in [0, 1]; ``bearded`` where a beard may cover it."""
        if strength > 0.05:
            strength = min(1.0, strength)
            ground = self.beard if bearded else self.look.skin
            self.line(points, ground * (1 - 0.62 * strength), width * (0.6 + 0.4 * strength))

    def shadow(self, points: Points, amount: float, flat: bool = False) -> None:
        """Adds a soft shadow of ``amount`` grey levels (negative: highlight)."""
        self._strokes.append(_Stroke(points, 128 - amount, -1.0, 0.0, flat, True))

    def develop(self) -> NDArray[np.uint8]:
        """Renders the image, uint8 ``(48, 48)``: drawn, downscaled, shaded, lit, blurred, with noise added."""
        look = self.look
        canvas = np.full((SIZE * _FINE, SIZE * _FINE), look.background, np.uint8)
        shadows = np.full((SIZE, SIZE), 128, np.uint8)
        # All points are placed in one numpy pass, instead of one for each of about sixty strokes.
        lengths = [len(stroke.points) for stroke in self._strokes]
        pixels = self._placed(lengths)
        sharp = np.rint(((pixels + 0.5) * _FINE - 0.5) * (1 << _SHIFT)).astype(np.int32)
        soft = np.rint(pixels * (1 << _SHIFT)).astype(np.int32)
        first = 0
        for stroke, length in zip(self._strokes, lengths, strict=True):
            part = slice(first, first + length)
            first += length
            shade = float(min(255.0, max(0.0, round(stroke.shade))))
            if stroke.width > 0:
                width = max(1, round(stroke.width * _FINE))
                cv2.polylines(canvas, [sharp[part]], stroke.closed, shade, width, cv2.LINE_AA, _SHIFT)
            elif stroke.width == 0:
                cv2.fillPoly(canvas, [sharp[part]], shade, cv2.LINE_AA, _SHIFT)
            else:
                cv2.fillPoly(shadows, [soft[part]], shade, cv2.LINE_AA, _SHIFT)
        image: NDArray[np.float32] = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float32)
        image += (cv2.GaussianBlur(shadows, (9, 9), 1.6).astype(np.float32) - 128) * (look.skin / 200)
        image *= 1 + 2 * (look.light_x * _COLUMNS + look.light_y * _ROWS)
        image += (look.contrast - 1) * (image - 128)
        if look.blur > 0.2:
            image = cv2.GaussianBlur(image, (7, 7), look.blur).astype(np.float32)
        image += self.rng.standard_normal((SIZE, SIZE), dtype=np.float32) * look.noise
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)

    def _placed(self, lengths: Sequence[int]) -> Points:
        """Pixel coordinates of the points of all strokes, concatenated."""
        look = self.look
        points = np.concatenate([stroke.points for stroke in self._strokes]) * (look.width, look.length)
        x, y = points.T
        depth = np.sqrt(np.maximum(0.1, 1 - 0.75 * x * x - 0.4 * y * y))
        depth += np.repeat([stroke.lift for stroke in self._strokes], lengths)
        turned = ~np.repeat([stroke.flat for stroke in self._strokes], lengths)
        posed = np.empty_like(points)
        posed[:, 0] = np.where(turned, x * math.cos(look.yaw) + depth * math.sin(look.yaw), x)
        posed[:, 1] = np.where(turned, y * math.cos(look.pitch) + depth * math.sin(look.pitch), y)
        cos, sin = math.cos(look.roll) * look.scale, math.sin(look.roll) * look.scale
        centre = (SIZE / 2 + look.shift_x, SIZE / 2 - 1.5 + look.shift_y)
        return posed @ np.array([[cos, sin], [-sin, cos]]) + centre
