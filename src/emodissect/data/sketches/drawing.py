"""Faces drawn from parameters: lines and patches on a large canvas, shrunk to 48 x 48 grey pixels.

The face lives in its own plane: x to the right, y down, half a head's width is 1, eyes at y = -0.22, mouth at y = 0.62.
Points are lifted onto an ellipsoid, turned by the pose, and scaled to the canvas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from emodissect.data.sketches.appearance import Appearance
from emodissect.data.sketches.parameters import Expression

SIZE = 48
_FINE = 4  # canvas pixels per image pixel
_SHIFT = 4  # fractional bits of OpenCV's coordinates
_T = np.linspace(0.0, 1.0, 9)
_BOW = np.stack([(1 - _T) ** 2, 2 * _T * (1 - _T), _T**2], 1)  # quadratic Bezier weights
_CIRCLE = np.stack([np.cos(np.linspace(0, 2 * np.pi, 20, False)), np.sin(np.linspace(0, 2 * np.pi, 20, False))], 1)
_ROWS, _COLUMNS = np.mgrid[0:SIZE, 0:SIZE] / (SIZE - 1) - 0.5
_WHITE_TEETH, _DARK = 235.0, 22.0

Points = NDArray[np.float64]


def draw_face(expression: Expression, appearance: Appearance) -> NDArray[np.uint8]:
    """The face as grey pixels, uint8 ``(48, 48)``; a pure function of its arguments."""
    sheet = _Sheet(appearance)
    _head(sheet, expression)
    _wrinkles(sheet, expression)
    _nose(sheet, expression)
    _mouth(sheet, expression)
    for side in (-1.0, 1.0):
        _eye(sheet, expression, side)
        _brow(sheet, expression, side)
    _glasses(sheet)
    _hair(sheet)
    _occlusion(sheet)
    return sheet.develop()


def _bow(start: Sequence[float], middle: Sequence[float], end: Sequence[float]) -> Points:
    """A curve from start to end that passes through ``middle`` halfway."""
    a, m, b = np.array(start, float), np.array(middle, float), np.array(end, float)
    return _BOW @ np.stack([a, 2 * m - (a + b) / 2, b])


def _oval(x: float, y: float, width: float, height: float) -> Points:
    return _CIRCLE * (width, height) + (x, y)


class _Sheet:
    """Two canvases, sharp strokes and soft shadows, and the pose that places points on them."""

    def __init__(self, appearance: Appearance) -> None:
        self.look = appearance
        self.rng = np.random.default_rng(appearance.texture)
        self.canvas = np.full((SIZE * _FINE, SIZE * _FINE), appearance.background, np.uint8)
        self.soft = np.full((SIZE, SIZE), 128, np.uint8)
        cos, sin = math.cos(appearance.roll), math.sin(appearance.roll)
        self.affine = np.array([[cos, sin], [-sin, cos]]) * appearance.scale
        self.centre = np.array([SIZE / 2 + appearance.shift_x, SIZE / 2 - 1.5 + appearance.shift_y])
        self.turn = (math.cos(appearance.yaw), math.sin(appearance.yaw))
        self.nod = (math.cos(appearance.pitch), math.sin(appearance.pitch))

    def skin(self, factor: float) -> float:
        """A shade of the skin: below 1 darker, above 1 lighter."""
        return self.look.skin * factor

    def place(self, points: Points, lift: float = 0.0, flat: bool = False) -> Points:
        """Pixels of points of the face; ``flat`` ones (the outline) do not move when the head turns."""
        x, y = points[:, 0] * self.look.width, points[:, 1] * self.look.length
        if not flat:
            z = np.sqrt(np.maximum(0.1, 1 - 0.75 * x * x - 0.4 * y * y)) + lift
            x = x * self.turn[0] + z * self.turn[1]
            y = y * self.nod[0] + z * self.nod[1]
        return np.stack([x, y], 1) @ self.affine + self.centre

    def _fixed(self, pixels: Points, unit: float) -> NDArray[np.int32]:
        return np.rint(((pixels + 0.5) * unit - 0.5) * (1 << _SHIFT)).astype(np.int32).reshape(-1, 1, 2)

    def fill(self, points: Points, shade: float, lift: float = 0.0, flat: bool = False) -> None:
        pixels = self._fixed(self.place(points, lift, flat), _FINE)
        cv2.fillPoly(self.canvas, [pixels], _shade(shade), cv2.LINE_AA, _SHIFT)

    def line(
        self, points: Points, shade: float, width: float, lift: float = 0.0, flat: bool = False, closed: bool = False
    ) -> None:
        """A stroke; ``width`` in pixels of the 48 x 48 image."""
        pixels = self._fixed(self.place(points, lift, flat), _FINE)
        cv2.polylines(self.canvas, [pixels], closed, _shade(shade), max(1, round(width * _FINE)), cv2.LINE_AA, _SHIFT)

    def crease(self, points: Points, strength: float, width: float = 0.8) -> None:
        """A fold of the skin, fading with its strength in [0, 1]."""
        if strength > 0.05:
            self.line(points, self.skin(1 - 0.62 * min(1.0, strength)), width * (0.6 + 0.4 * strength))

    def shadow(self, points: Points, amount: float, flat: bool = False) -> None:
        """A soft darkening (negative: lightening) by ``amount`` grey levels."""
        pixels = self._fixed(self.place(points, 0.0, flat), 1)
        cv2.fillPoly(self.soft, [pixels], _shade(128 - amount), cv2.LINE_AA, _SHIFT)

    def develop(self) -> NDArray[np.uint8]:
        """The finished image: shrunk, shaded, lit, blurred and made noisy."""
        look = self.look
        image = cv2.resize(self.canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA).astype(np.float64)
        soft = cv2.GaussianBlur(self.soft, (0, 0), 1.6).astype(np.float64) - 128
        light = 1 + 2 * (look.light_x * _COLUMNS + look.light_y * _ROWS)
        image = (image + soft * (look.skin / 200)) * light
        image = 128 + (image - 128) * look.contrast
        if look.blur > 0.2:
            image = cv2.GaussianBlur(image, (0, 0), look.blur)
        image += self.rng.standard_normal((SIZE, SIZE)) * look.noise
        return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _shade(value: float) -> float:
    return float(min(255.0, max(0.0, round(value))))


def _head(sheet: _Sheet, face: Expression) -> None:
    look = sheet.look
    if look.hair_style == 3:  # long hair falls behind the head
        sheet.fill(
            np.array([(-1.2, -0.6), (-0.8, -1.4), (0.8, -1.4), (1.2, -0.6), (1.3, 1.6), (-1.3, 1.6)]),
            look.hair,
            flat=True,
        )
    sheet.fill(np.array([(-0.5, 0.8), (0.5, 0.8), (0.62, 1.7), (-0.62, 1.7)]), sheet.skin(0.66), flat=True)
    for side in (-1.0, 1.0):
        if look.hair_style != 3:
            sheet.fill(_oval(side * 1.02, 0.02, 0.14, 0.24), sheet.skin(0.84), flat=True)
    drop, wide = 0.2 * face.jaw, 0.07 * face.clench
    chin, cheek = 1.12 + drop - 0.02 * face.chin, 0.97 + 0.05 * face.cheeks * max(0.0, face.mouth_curve)
    half = [
        (0.0, chin), (0.22, chin - 0.015), (0.42, chin - 0.12), (0.66 + wide, 0.80 + 0.6 * drop), (0.84 + wide, 0.52),
        (cheek, 0.1), (1.0, -0.3), (0.94, -0.7), (0.72, -1.06), (0.38, -1.25), (0.0, -1.3),
    ]  # fmt: skip
    outline = np.array(half + [(-x, y) for x, y in reversed(half[1:-1])])
    sheet.fill(outline, look.skin, flat=True)
    sheet.line(outline, sheet.skin(0.7), 0.6, flat=True, closed=True)
    for side in (-1.0, 1.0):  # the head's roundness, and the jaw muscle
        sheet.shadow(
            np.array(
                [(side * 1.1, -0.9), (side * 0.88, -0.2), (side * 0.8, 0.5), (side * 0.4, 1.2), (side * 1.1, 1.2)]
            ),
            26,
            flat=True,
        )
        sheet.shadow(_oval(side * 0.4, -0.24, 0.3, 0.17), 16)
        sheet.shadow(_oval(side * 0.55, 0.26 - 0.06 * face.cheeks, 0.2, 0.14), -10 - 22 * face.cheeks)
        if face.clench > 0.15:
            sheet.shadow(_oval(side * 0.74, 0.62, 0.1, 0.2), -30 * face.clench)
            sheet.shadow(_oval(side * 0.58, 0.66, 0.08, 0.2), 60 * face.clench)
            sheet.crease(_bow((side * 0.66, 0.42), (side * 0.58, 0.64), (side * 0.62, 0.88)), 0.95 * face.clench, 0.9)
    if look.beard:
        shade = sheet.skin(1 - look.beard) + look.hair * look.beard
        beard = [
            (0.0, chin),
            (0.42, chin - 0.12),
            (0.68 + wide, 0.80),
            (0.84, 0.45),
            (0.62, 0.5),
            (0.45, 0.52),
            (0.0, 0.5),
        ]
        sheet.fill(np.array(beard + [(-x, y) for x, y in reversed(beard[1:-1])]), shade, flat=True)


def _wrinkles(sheet: _Sheet, face: Expression) -> None:
    age = sheet.look.age
    raised = max(0.0, face.brow_height)
    for row in range(2):
        y = -0.86 - 0.13 * row - 0.03 * raised
        sheet.crease(
            _bow((-0.5, y + 0.03), (0, y - 0.03), (0.5, y + 0.03)), 0.12 * age + 0.6 * raised * (0.6 + 0.4 * age)
        )
    if face.brow_furrow > 0.1:
        top, low = -0.68, -0.4
        for x in (-0.08, 0.09):
            sheet.crease(
                np.array([(x * 1.1, top + 0.06 * (1 - face.brow_furrow)), (x * 0.8, low)]), 1.1 * face.brow_furrow, 1.0
            )
        sheet.shadow(_oval(0, -0.5, 0.14, 0.12), 34 * face.brow_furrow)
    grin = max(0.0, face.mouth_curve) * (0.5 + 0.5 * face.cheeks)
    fold = max(0.75 * grin, 0.95 * face.upper_lip, 0.3 * age, 0.5 * max(0.0, -face.mouth_curve) * age)
    for side in (-1.0, 1.0):
        corner = 0.44 + 0.1 * max(0.0, face.mouth_width)
        high = 0.26 - 0.1 * face.upper_lip
        sheet.crease(
            _bow((side * 0.2, high), (side * (0.36 + 0.06 * grin), 0.38), (side * corner, 0.58 - 0.05 * grin)),
            fold,
            0.9,
        )
        for angle in (-0.35, 0.0, 0.38):  # crow's feet
            x, y = side * 0.7, -0.2 + 0.1 * angle
            sheet.crease(
                np.array([(x, y), (x + side * 0.26, y + 0.26 * angle)]), max(1.1 * face.cheeks, 0.15 * age), 0.9
            )
        if face.cheeks > 0.1:  # the cheek pushed up under the eye
            sheet.crease(_bow((side * 0.22, 0.0), (side * 0.46, 0.06), (side * 0.7, -0.04)), 0.75 * face.cheeks, 0.8)


def _brow(sheet: _Sheet, face: Expression, side: float) -> None:
    look = sheet.look
    rest = -0.5 + look.brow_rest
    lift, slant = -0.2 * face.brow_height if face.brow_height > 0 else -0.15 * face.brow_height, 0.15 * face.brow_slant
    inner_x = 0.17 - 0.075 * face.brow_furrow
    inner = (side * inner_x, rest + lift - slant + 0.02 * face.brow_furrow)
    outer = (side * 0.68, rest + 0.04 + lift * 0.85 + slant)
    arch = -0.05 - 0.07 * max(0.0, face.brow_height) + 0.05 * abs(face.brow_slant)
    middle = (side * 0.43, (inner[1] + outer[1]) / 2 + arch)
    upper = _bow(inner, middle, outer)
    thick = 0.085 * look.brow_weight * np.array([1.0, 1.05, 1.05, 1, 0.95, 0.9, 0.75, 0.55, 0.3])
    lower = upper + np.stack([np.zeros(9), thick], 1)
    shade = min(look.hair, sheet.skin(0.5)) if look.hair < 110 else sheet.skin(0.5)
    sheet.fill(np.concatenate([upper, lower[::-1]]), shade, lift=0.06)


def _eye(sheet: _Sheet, face: Expression, side: float) -> None:
    look = sheet.look
    x, y = side * 0.41 * look.eye_distance, -0.2
    half = 0.235 * look.eye_size
    inner, outer = (x - side * half, y + 0.015), (x + side * half, y - 0.01)
    closed = face.lid_opening < 0.08
    upper_height = look.eye_size * (0.21 * face.lid_opening + 0.085 * face.upper_lid * min(1.0, 3 * face.lid_opening))
    lower_height = look.eye_size * 0.13 * face.lid_opening * (1 - 0.55 * face.lid_tension)
    lash = min(look.skin * 0.32, 45.0)
    if closed:
        curve = _bow(inner, (x, y + 0.075), outer)
        sheet.crease(_bow((x - half, y - 0.1), (x, y - 0.15), (x + half, y - 0.1)), 0.25, 0.6)
        sheet.line(curve, lash, 1.15)
        sheet.shadow(_oval(x, y - 0.06, half, 0.07), -10)
    else:
        upper, lower = _bow(inner, (x, y - upper_height), outer), _bow(inner, (x, y + lower_height), outer)
        sheet.fill(np.concatenate([upper, lower[::-1]]), min(245.0, sheet.skin(0.25) + 185), lift=0.02)
        order = np.argsort(upper[:, 0])
        iris_x = x + 0.09 * face.gaze_x
        iris = _oval(iris_x, y - 0.035 + 0.07 * face.gaze_y, 0.105 * look.eye_size, 0.115 * look.eye_size)
        top = np.interp(iris[:, 0], upper[order, 0], upper[order, 1])
        bottom = np.interp(iris[:, 0], lower[order, 0], lower[order, 1])
        iris[:, 1] = np.clip(iris[:, 1], top, np.maximum(top, bottom))
        sheet.fill(iris, 25.0, lift=0.02)
        sheet.line(upper, lash, 0.75 + 0.25 * (1 - face.lid_opening), lift=0.02)
        sheet.line(lower, sheet.skin(0.6 - 0.2 * face.lid_tension), 0.5 + 0.35 * face.lid_tension, lift=0.02)
        crease = upper - (0.0, 0.05 + 0.05 * (1 - face.upper_lid))
        sheet.crease(crease[1:-1], 0.3 * (1 - face.upper_lid) + 0.1, 0.5)
    if face.lid_tension > 0.15:  # the pouch under a tightened lid
        low = y + lower_height + 0.1
        sheet.crease(_bow((x - half * 0.8, low), (x, low + 0.03), (x + half * 0.8, low)), 0.75 * face.lid_tension, 0.7)
    if face.tears > 0.15:
        _tear(sheet, face.tears, x + side * 0.04, y + max(0.05, lower_height))


def _tear(sheet: _Sheet, strength: float, x: float, y: float) -> None:
    """A bright, dark-rimmed streak down the cheek that ends in a drop."""
    length = 0.14 + 0.42 * strength * (0.7 + 0.3 * sheet.rng.random())
    width = 0.045 + 0.035 * strength
    drop = np.concatenate([[(x, y)], _oval(x, y + length, width, width * 1.3)[np.r_[17:20, 0:14]]])
    shape = np.concatenate([[(x - 0.02, y)], [(x + 0.02, y)], drop[1:]])
    sheet.line(shape, sheet.skin(0.5), 0.9, closed=True)
    sheet.fill(shape, 250.0)


def _nose(sheet: _Sheet, face: Expression) -> None:
    tip = 0.24 * sheet.look.nose_length - 0.04 * face.nose_wrinkle
    flare = face.nostrils
    sheet.shadow(np.array([(0.1, -0.3), (0.2, tip), (0.08, tip + 0.06), (0.04, -0.2)]), 22)
    sheet.shadow(_oval(0, tip - 0.06, 0.07, 0.09), -16)
    sheet.line(
        np.array([(0.09, -0.22), (0.11, 0.02), (0.15 + 0.04 * flare, tip - 0.03)]), sheet.skin(0.8), 0.6, lift=0.1
    )
    for side in (-1.0, 1.0):
        wing = 0.17 + 0.075 * flare
        sheet.line(
            _bow((side * (wing - 0.03), tip - 0.09 - 0.03 * flare), (side * wing, tip), (side * (wing - 0.06), tip + 0.05)),
            sheet.skin(0.68 - 0.25 * flare), 0.7 + 0.3 * flare, lift=0.12,
        )  # fmt: skip
        hole = _oval(side * (0.085 + 0.035 * flare), tip + 0.035, 0.036 + 0.04 * flare, 0.018 + 0.04 * flare)
        sheet.fill(hole, sheet.skin(0.45 - 0.32 * flare), lift=0.14)
    if face.nose_wrinkle > 0.1:
        for row in range(3):
            y = -0.26 + 0.11 * row
            sheet.crease(_bow((-0.13, y - 0.05), (0, y + 0.02), (0.13, y - 0.05)), face.nose_wrinkle, 0.8)
        for side in (-1.0, 1.0):
            sheet.crease(np.array([(side * 0.13, -0.04), (side * 0.24, 0.1)]), face.nose_wrinkle, 0.8)


def _mouth(sheet: _Sheet, face: Expression) -> None:
    look = sheet.look
    press = face.lip_press * max(0.0, 1 - 2.5 * face.mouth_opening)
    half = 0.34 * (1 + 0.42 * face.mouth_width) * (1 + 0.12 * max(0.0, face.mouth_curve))
    y = 0.6 + look.mouth_rest - 0.04 * face.upper_lip - 0.03 * face.chin + 0.04 * face.jaw
    corner = y - 0.15 * face.mouth_curve + 0.02 * abs(face.mouth_curve)
    gap = 0.42 * face.mouth_opening
    bend = 0.09 * face.mouth_curve
    top_middle = y + bend * 0.6 - 0.35 * gap - 0.1 * face.upper_lip * min(1.0, 4 * face.mouth_opening)
    low_middle = y + bend * (1.3 if gap > 0.03 else 0.6) + 0.65 * gap
    inner_top = _bow((-half, corner), (0, top_middle), (half, corner))
    inner_low = _bow((-half, corner), (0, max(low_middle, top_middle)), (half, corner))
    if face.upper_lip > 0.1:  # AU10 squares the upper lip
        inner_top[:, 1] -= 0.07 * face.upper_lip * np.array([0, 0.6, 1, 1, 0.8, 1, 1, 0.6, 0])
    full = 1 - 0.85 * press
    profile = np.sin(np.pi * np.linspace(0, 1, 9))
    cupid = np.array([0, 0.6, 0.95, 1.15, 0.95, 1.15, 0.95, 0.6, 0])
    outer_top = inner_top - np.stack([np.zeros(9), 0.085 * look.lip_weight * full * cupid], 1)
    push = 0.03 * face.chin
    outer_low = inner_low + np.stack([np.zeros(9), (0.115 * look.lip_weight * full - push) * profile], 1)
    if look.moustache:
        band = np.concatenate([outer_top - (0.0, 0.17), outer_top[::-1]]) * (1.1, 1)
        sheet.fill(band, sheet.skin(1 - look.moustache) * 0.9 + look.hair * look.moustache, lift=0.05)
    lips = sheet.skin(0.66)
    sheet.fill(np.concatenate([outer_top, outer_low[::-1]]), lips, lift=0.05)
    if gap > 0.02:
        sheet.fill(np.concatenate([inner_top, inner_low[::-1]]), _DARK, lift=0.05)
        bared = max(0.0, face.mouth_curve, 0.7 * face.mouth_width, 0.9 * face.upper_lip)
        if bared > 0.2 and gap > 0.06:  # upper teeth
            height = np.minimum(0.13 * bared + 0.03, 0.62 * (inner_low[:, 1] - inner_top[:, 1]))
            teeth = inner_top + np.stack([np.zeros(9), np.maximum(height, 0)], 1)
            sheet.fill(
                np.concatenate([inner_top[1:-1], teeth[1:-1][::-1]]),
                _WHITE_TEETH * min(1.0, 0.55 + 0.45 * bared),
                lift=0.05,
            )
        if face.mouth_opening > 0.55:  # the tongue
            sheet.fill(_oval(0, low_middle - 0.25 * gap, half * 0.5, 0.2 * gap), sheet.skin(0.45), lift=0.05)
        sheet.line(inner_top, lips * 0.75, 0.4, lift=0.05)
    else:
        sheet.line(inner_top, max(_DARK, sheet.skin(0.36 - 0.14 * press)), 0.8 + 0.5 * press, lift=0.05)
    if press > 0.15:  # skin bulges above, below and beside lips that are pressed
        for side in (-1.0, 1.0):
            sheet.crease(
                _bow((side * half * 1.02, corner - 0.1), (side * half * 1.2, corner), (side * half * 1.02, corner + 0.1)),
                press, 0.9,
            )  # fmt: skip
        sheet.shadow(_oval(0, y - 0.12, half * 0.8, 0.05), -36 * press)
        sheet.shadow(_oval(0, y + 0.13, half * 0.8, 0.05), -36 * press)
    for side in (-1.0, 1.0):  # mouth corners
        sheet.line(
            np.array([(side * half * 0.98, corner), (side * half * 1.06, corner - 0.05 * face.mouth_curve)]),
            sheet.skin(0.5),
            0.7,
            lift=0.03,
        )
        down = max(0.0, -face.mouth_curve)
        sheet.crease(
            _bow(
                (side * half, corner + 0.03),
                (side * (half + 0.06), corner + 0.12),
                (side * (half + 0.05), corner + 0.22),
            ),
            0.8 * down,
            0.8,
        )
    below = float(outer_low[4, 1])
    sheet.shadow(_oval(0, below + 0.06, 0.2, 0.04), 22)
    if face.chin > 0.1:  # the chin boss: an arched crease and a bright bulge
        sheet.crease(_bow((-0.2, below + 0.2), (0, below + 0.08), (0.2, below + 0.2)), 1.1 * face.chin, 1.0)
        sheet.shadow(_oval(0, below + 0.22, 0.14, 0.07), -40 * face.chin)
        for x, dy in ((-0.07, 0.22), (0.08, 0.2), (0.0, 0.27)):
            sheet.crease(np.array([(x, below + dy), (x + 0.015, below + dy + 0.02)]), 0.7 * face.chin, 0.7)


def _glasses(sheet: _Sheet) -> None:
    kind = sheet.look.glasses
    if not kind:
        return
    width = 0.6 if kind == 1 else 1.1
    shade = 120.0 if kind == 1 and sheet.look.skin > 150 else 30.0
    for side in (-1.0, 1.0):
        sheet.line(
            _oval(side * 0.41 * sheet.look.eye_distance, -0.17, 0.31, 0.25), shade, width, lift=0.15, closed=True
        )
        sheet.line(np.array([(side * 0.72, -0.2), (side * 1.0, -0.24)]), shade, width)
    sheet.line(_bow((-0.1, -0.2), (0, -0.23), (0.1, -0.2)), shade, width, lift=0.2)


def _hair(sheet: _Sheet) -> None:
    style, shade = sheet.look.hair_style, sheet.look.hair
    if style == 0:
        return
    line = {1: -0.98, 2: -0.82, 3: -1.0, 4: -0.98}[style]
    crown = [(-1.04, -0.3), (-1.08, -0.8), (-0.8, -1.25), (0, -1.5), (0.8, -1.25), (1.08, -0.8), (1.04, -0.3)]
    front = [(0.94, -0.5), (0.78, line + 0.08), (0.3, line), (-0.3, line), (-0.78, line + 0.08), (-0.94, -0.5)]
    if style == 4:
        front = [
            (0.94, -0.5),
            (0.84, line + 0.22),
            (0.5, line + 0.1),
            (0.3, line - 0.1),
            (-0.4, line + 0.12),
            (-0.94, -0.5),
        ]
    sheet.fill(np.array(crown + front), shade, flat=True)
    if style == 3:
        for side in (-1.0, 1.0):
            sheet.fill(
                np.array(
                    [(side * 0.96, -0.8), (side * 0.9, 0.0), (side * 0.98, 0.9), (side * 1.4, 1.3), (side * 1.2, -0.6)]
                ),
                shade,
                flat=True,
            )


def _occlusion(sheet: _Sheet) -> None:
    kind, look = sheet.look.occlusion, sheet.look
    side = 1.0 if sheet.rng.random() < 0.5 else -1.0
    if kind == 1:  # a hand that holds the chin
        for finger in range(3):
            x = side * (0.3 + 0.2 * finger)
            sheet.line(np.array([(x, 1.6), (x - side * 0.1, 0.95 - 0.05 * finger)]), sheet.skin(0.92), 3.4, flat=True)
    elif kind == 2:
        sheet.fill(
            np.array([(side * 0.7, -1.6), (side * 1.6, -1.6), (side * 1.6, 1.6), (side * 0.95, 1.6)]), 40.0, flat=True
        )
    elif kind == 3:
        sheet.fill(
            np.array([(side * 0.2, -1.2), (side * 0.95, -1.0), (side * 0.95, -0.35), (side * 0.6, -0.55)]),
            look.hair,
            flat=True,
        )
