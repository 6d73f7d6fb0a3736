"""Draws faces from parameters, part by part: head, creases, nose, mouth, eyes, brows, glasses, hair."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emodissect.demo.sketches.appearance import Appearance
from emodissect.demo.sketches.parameters import Expression
from emodissect.demo.sketches.sheet import Points, Sheet, area, bow, oval

_SIDES = (-1.0, 1.0)
_SINE = np.sin(np.pi * np.linspace(0, 1, 9))
_CUPID = np.array([0, 0.6, 0.95, 1.15, 0.95, 1.15, 0.95, 0.6, 0])  # the upper lip's bow
_SQUARE = np.array([0, 0.6, 1, 1, 0.8, 1, 1, 0.6, 0])  # the upper lip raised by AU10
_TAPER = np.array([1.0, 1.05, 1.05, 1, 0.95, 0.9, 0.75, 0.55, 0.3])  # a brow's thickness from the nose outwards


def draw_face(expression: Expression, appearance: Appearance) -> NDArray[np.uint8]:
    """The face as grey pixels, uint8 ``(48, 48)``; a pure function of its arguments."""
    sheet = Sheet(appearance)
    _head(sheet, expression)
    _wrinkles(sheet, expression)
    _nose(sheet, expression)
    _mouth(sheet, expression)
    for side in _SIDES:
        _eye(sheet, expression, side)
        _brow(sheet, expression, side)
    _glasses(sheet)
    _hair(sheet)
    _occlusion(sheet)
    return sheet.develop()


def _below(curve: Points, depth: float | Points) -> Points:
    """The curve moved down by a depth, a single one or one per point."""
    moved = curve.copy()
    moved[:, 1] += depth
    return moved


def _between(one: Points, other: Points) -> Points:
    """The patch between two curves that run in the same direction."""
    return np.concatenate([one, other[::-1]])


def _mirrored(half: list[tuple[float, float]]) -> Points:
    """A closed outline from its right half, which starts and ends on the centre line."""
    return np.array(half + [(-x, y) for x, y in reversed(half[1:-1])])


def _head(sheet: Sheet, face: Expression) -> None:
    look = sheet.look
    if look.hair_style == 3:  # long hair falls behind the head
        half = [(0.0, -1.45), (0.5, -1.38), (0.9, -1.15), (1.15, -0.7), (1.22, 0.0), (1.26, 1.7), (0.0, 1.7)]
        sheet.fill(_mirrored(half), look.hair, flat=True)
    sheet.fill(area((-0.5, 0.8), (0.5, 0.8), (0.62, 1.7), (-0.62, 1.7)), sheet.skin(0.66), flat=True)
    drop, wide = 0.2 * face.jaw, 0.07 * face.clench
    chin, cheek = 1.12 + drop - 0.02 * face.chin, 0.97 + 0.05 * face.cheeks * max(0.0, face.mouth_curve)
    half = [
        (0.0, chin), (0.22, chin - 0.015), (0.42, chin - 0.12), (0.66 + wide, 0.8 + 0.6 * drop), (0.84 + wide, 0.52),
        (0.93, 0.3), (cheek, 0.1), (1.0, -0.3), (0.97, -0.55), (0.88, -0.82), (0.7, -1.06), (0.38, -1.25), (0.0, -1.3),
    ]  # fmt: skip
    for side in _SIDES:
        if look.hair_style != 3:
            sheet.fill(oval(side * 1.02, 0.02, 0.14, 0.24), sheet.skin(0.84), flat=True)
    outline = _mirrored(half)
    sheet.fill(outline, look.skin, flat=True)
    sheet.line(outline, sheet.skin(0.7), 0.6, flat=True, closed=True)
    for side in _SIDES:  # shading of the head, eye sockets, cheeks and jaw muscle
        edge = [(1.1, -0.9), (0.88, -0.2), (0.8, 0.5), (0.4, 1.2), (1.1, 1.2)]
        sheet.shadow(np.array(edge) * (side, 1), 26, flat=True)
        sheet.shadow(oval(side * 0.4, -0.24, 0.3, 0.17), 16)
        sheet.shadow(oval(side * 0.55, 0.26 - 0.06 * face.cheeks, 0.2, 0.14), -10 - 22 * face.cheeks)
        if face.clench > 0.15:
            sheet.shadow(oval(side * 0.76, 0.6, 0.1, 0.2), -40 * face.clench)
            sheet.shadow(oval(side * 0.57, 0.66, 0.08, 0.2), 64 * face.clench)
            crease = bow((side * 0.66, 0.42), (side * 0.6, 0.64), (side * 0.63, 0.86))
            sheet.crease(crease, 0.8 * face.clench, 0.9)
    if look.beard:
        half = [
            (0.0, chin),
            (0.42, chin - 0.12),
            (0.68 + wide, 0.8),
            (0.84, 0.45),
            (0.62, 0.5),
            (0.45, 0.52),
            (0.0, 0.5),
        ]
        sheet.fill(_mirrored(half), sheet.beard, flat=True)


def _wrinkles(sheet: Sheet, face: Expression) -> None:
    age = sheet.look.age
    raised = max(0.0, face.brow_height)
    for row in range(2):
        y = -0.86 - 0.13 * row - 0.03 * raised
        strength = 0.12 * age + 0.6 * raised * (0.6 + 0.4 * age)
        sheet.crease(bow((-0.5, y + 0.03), (0, y - 0.03), (0.5, y + 0.03)), strength)
    if face.brow_furrow > 0.1:
        top = -0.68 + 0.06 * (1 - face.brow_furrow)
        for x in (-0.08, 0.09):
            sheet.crease(area((x * 1.1, top), (x * 0.8, -0.4)), 1.1 * face.brow_furrow, 1.0)
        sheet.shadow(oval(0, -0.5, 0.14, 0.12), 34 * face.brow_furrow)
    grin = max(0.0, face.mouth_curve) * (0.5 + 0.5 * face.cheeks)
    fold = max(0.75 * grin, 0.95 * face.upper_lip, 0.3 * age, 0.5 * max(0.0, -face.mouth_curve) * age)
    corner, high = 0.44 + 0.1 * max(0.0, face.mouth_width), 0.26 - 0.1 * face.upper_lip
    for side in _SIDES:
        bend = bow((side * 0.2, high), (side * (0.36 + 0.06 * grin), 0.38), (side * corner, 0.58 - 0.05 * grin))
        sheet.crease(bend, fold, 0.9)
        for angle in (-0.35, 0.0, 0.38):  # crow's feet
            x, y = side * 0.7, -0.2 + 0.1 * angle
            strength = max(1.1 * face.cheeks, 0.15 * age)
            sheet.crease(area((x, y), (x + side * 0.26, y + 0.26 * angle)), strength, 0.9)
        if face.cheeks > 0.1:  # the cheek pushed up under the eye
            pouch = bow((side * 0.22, 0.0), (side * 0.46, 0.06), (side * 0.7, -0.04))
            sheet.crease(pouch, 0.75 * face.cheeks)


def _brow(sheet: Sheet, face: Expression, side: float) -> None:
    look = sheet.look
    rest = -0.5 + look.brow_rest
    lift = -0.2 * face.brow_height if face.brow_height > 0 else -0.15 * face.brow_height
    slant = 0.15 * face.brow_slant
    inner = (side * (0.17 - 0.075 * face.brow_furrow), rest + lift - slant + 0.02 * face.brow_furrow)
    outer = (side * 0.68, rest + 0.04 + lift * 0.85 + slant)
    arch = -0.05 - 0.07 * max(0.0, face.brow_height) + 0.05 * abs(face.brow_slant)
    upper = bow(inner, (side * 0.43, (inner[1] + outer[1]) / 2 + arch), outer)
    shade = min(look.hair, sheet.skin(0.5)) if look.hair < 110 else sheet.skin(0.5)
    sheet.fill(_between(upper, _below(upper, 0.085 * look.brow_weight * _TAPER)), shade, lift=0.06)


def _eye(sheet: Sheet, face: Expression, side: float) -> None:
    size = sheet.look.eye_size
    x, y, half = side * 0.41 * sheet.look.eye_distance, -0.2, 0.235 * size
    inner, outer = (x - side * half, y + 0.015), (x + side * half, y - 0.01)
    high = size * (0.21 * face.lid_opening + 0.085 * face.upper_lid * min(1.0, 3 * face.lid_opening))
    low = size * 0.13 * face.lid_opening * (1 - 0.55 * face.lid_tension)
    lash = min(sheet.look.skin * 0.32, 45.0)
    if face.lid_opening < 0.08:
        sheet.crease(bow((x - half, y - 0.1), (x, y - 0.15), (x + half, y - 0.1)), 0.25, 0.6)
        sheet.shadow(oval(x, y - 0.06, half, 0.07), -16)
        sheet.line(bow(inner, (x, y + 0.085), outer), lash, 1.15)
    else:
        upper, lower = bow(inner, (x, y - high), outer), bow(inner, (x, y + low), outer)
        sheet.fill(_between(upper, lower), min(245.0, sheet.skin(0.25) + 185), lift=0.02)
        iris = oval(x + 0.09 * face.gaze_x, y - 0.035 + 0.07 * face.gaze_y, 0.105 * size, 0.115 * size)
        step = int(side)  # np.interp needs ascending x
        top = np.interp(iris[:, 0], upper[::step, 0], upper[::step, 1])
        bottom = np.interp(iris[:, 0], lower[::step, 0], lower[::step, 1])
        iris[:, 1] = np.minimum(np.maximum(iris[:, 1], top), bottom)  # the lids cover the rest
        sheet.fill(iris, 25.0, lift=0.02)
        sheet.line(upper, lash, 0.75 + 0.25 * (1 - face.lid_opening), lift=0.02)
        sheet.line(lower, sheet.skin(0.6 - 0.2 * face.lid_tension), 0.5 + 0.35 * face.lid_tension, lift=0.02)
        lid = _below(upper[1:-1], -0.05 - 0.05 * (1 - face.upper_lid))
        sheet.crease(lid, 0.3 * (1 - face.upper_lid) + 0.1, 0.5)
    if face.lid_tension > 0.15:  # the pouch under a tightened lid
        pouch = bow((x - half * 0.8, y + low + 0.1), (x, y + low + 0.13), (x + half * 0.8, y + low + 0.1))
        sheet.crease(pouch, 0.75 * face.lid_tension, 0.7)
    if face.tears > 0.15:
        _tear(sheet, face.tears, x + side * 0.05, y + max(0.05, low))


def _tear(sheet: Sheet, strength: float, x: float, y: float) -> None:
    """A bright drop with a dark rim on the cheek, and its wet trail."""
    length = 0.16 + 0.36 * strength * (0.7 + 0.3 * sheet.rng.random())
    width = 0.05 + 0.04 * strength
    foot = oval(x, y + length, width, width)
    drop = np.concatenate([foot[:10], area((x, y + length - 3.2 * width))])  # the lower half, and the tip above it
    sheet.line(area((x, y), (x, y + length)), 235.0, 0.6)
    sheet.line(drop, sheet.skin(0.45), 0.9, closed=True)
    sheet.fill(drop, 252.0)


def _nose(sheet: Sheet, face: Expression) -> None:
    tip = 0.24 * sheet.look.nose_length - 0.04 * face.nose_wrinkle
    flare = face.nostrils
    sheet.shadow(area((0.1, -0.3), (0.2, tip), (0.08, tip + 0.06), (0.04, -0.2)), 22)
    sheet.shadow(oval(0, tip - 0.06, 0.07, 0.09), -16)
    sheet.line(area((0.09, -0.22), (0.11, 0.02), (0.15 + 0.04 * flare, tip - 0.03)), sheet.skin(0.8), 0.6, lift=0.1)
    wing = 0.17 + 0.075 * flare
    for side in _SIDES:
        curve = bow((wing - 0.03, tip - 0.09 - 0.03 * flare), (wing, tip), (wing - 0.06, tip + 0.05)) * (side, 1)
        sheet.line(curve, sheet.skin(0.68 - 0.25 * flare), 0.7 + 0.3 * flare, lift=0.12)
        hole = oval(side * (0.085 + 0.035 * flare), tip + 0.035, 0.036 + 0.04 * flare, 0.018 + 0.04 * flare)
        sheet.fill(hole, sheet.skin(0.45 - 0.32 * flare), lift=0.14)
    if face.nose_wrinkle > 0.1:
        for row in range(3):
            y = -0.26 + 0.11 * row
            sheet.crease(bow((-0.13, y - 0.05), (0, y + 0.02), (0.13, y - 0.05)), face.nose_wrinkle)
        for side in _SIDES:
            sheet.crease(area((side * 0.13, -0.04), (side * 0.24, 0.1)), face.nose_wrinkle)


def _mouth(sheet: Sheet, face: Expression) -> None:
    look = sheet.look
    press = face.lip_press * max(0.0, 1 - 2.5 * face.mouth_opening)
    half = 0.34 * (1 + 0.42 * face.mouth_width) * (1 + 0.12 * max(0.0, face.mouth_curve))
    y = 0.6 + look.mouth_rest - 0.04 * face.upper_lip - 0.03 * face.chin + 0.04 * face.jaw
    corner = y - 0.15 * face.mouth_curve + 0.02 * abs(face.mouth_curve)
    gap, bend = 0.42 * face.mouth_opening, 0.09 * face.mouth_curve
    top = y + bend * 0.6 - 0.35 * gap - 0.1 * face.upper_lip * min(1.0, 4 * face.mouth_opening)
    low = max(top, y + bend * (1.3 if gap > 0.03 else 0.6) + 0.65 * gap)
    inner_top = bow((-half, corner), (0, top), (half, corner))
    inner_low = bow((-half, corner), (0, low), (half, corner))
    if face.upper_lip > 0.1:
        inner_top[:, 1] -= 0.07 * face.upper_lip * _SQUARE
    full = look.lip_weight * (1 - 0.85 * press)
    outer_top = _below(inner_top, -0.085 * full * _CUPID)
    outer_low = _below(inner_low, (0.115 * full - 0.03 * face.chin) * _SINE)
    if look.moustache:
        shade = sheet.skin(1 - look.moustache) * 0.9 + look.hair * look.moustache
        sheet.fill(_between(_below(outer_top, -0.17), outer_top) * (1.1, 1), shade, lift=0.05)
    lips = sheet.skin(0.66)
    sheet.fill(_between(outer_top, outer_low), lips, lift=0.05)
    if gap > 0.02:
        sheet.fill(_between(inner_top, inner_low), 22.0, lift=0.05)
        bared = max(0.0, face.mouth_curve, 0.75 * face.mouth_width, 0.9 * face.upper_lip)
        if bared > 0.2 and gap > 0.06:  # upper teeth
            height = np.minimum(0.15 * bared + 0.02, 0.6 * (inner_low[:, 1] - inner_top[:, 1]))
            teeth = _below(inner_top, np.maximum(height, 0.0))
            sheet.fill(_between(inner_top[1:-1], teeth[1:-1]), 236.0, lift=0.05)
        if face.mouth_opening > 0.55:  # the tongue
            sheet.fill(oval(0, low - 0.25 * gap, half * 0.5, 0.2 * gap), sheet.skin(0.45), lift=0.05)
        sheet.line(inner_top, lips * 0.7, 0.4, lift=0.05)
    else:
        sheet.line(inner_top, max(22.0, sheet.skin(0.36 - 0.14 * press)), 0.8 + 0.5 * press, lift=0.05)
    if press > 0.15:  # skin bulges around pressed lips
        sheet.shadow(oval(0, y - 0.12, half * 0.8, 0.05), -36 * press)
        sheet.shadow(oval(0, y + 0.13, half * 0.8, 0.05), -36 * press)
    down = max(0.0, -face.mouth_curve)
    for side in _SIDES:
        edge = side * half
        if press > 0.15:
            bulge = bow((edge * 1.02, corner - 0.1), (edge * 1.2, corner), (edge * 1.02, corner + 0.1))
            sheet.crease(bulge, press, 0.9, bearded=True)
        tick = area((edge * 0.98, corner), (edge * 1.06, corner - 0.05 * face.mouth_curve))
        sheet.line(tick, sheet.beard * 0.5, 0.7, lift=0.03)
        droop = bow((edge, corner + 0.03), (edge + side * 0.06, corner + 0.1), (edge + side * 0.05, corner + 0.18))
        sheet.crease(droop, 0.6 * down, bearded=True)
    _chin(sheet, face.chin, float(outer_low[4, 1]))


def _chin(sheet: Sheet, raised: float, y: float) -> None:
    """The chin below a lower lip at ``y``; when raised, with an arched crease and a dimpled bulge."""
    sheet.shadow(oval(0, y + 0.06, 0.2, 0.04), 22)
    if raised > 0.1:
        sheet.crease(bow((-0.2, y + 0.2), (0, y + 0.08), (0.2, y + 0.2)), 1.1 * raised, 1.0, bearded=True)
        sheet.shadow(oval(0, y + 0.22, 0.14, 0.07), -40 * raised)
        for x, depth in ((-0.07, 0.22), (0.08, 0.2), (0.0, 0.27)):
            sheet.crease(area((x, y + depth), (x + 0.015, y + depth + 0.02)), 0.7 * raised, 0.7, bearded=True)


def _glasses(sheet: Sheet) -> None:
    kind, look = sheet.look.glasses, sheet.look
    if not kind:
        return
    width = 0.6 if kind == 1 else 1.1
    shade = 120.0 if kind == 1 and look.skin > 150 else 30.0
    for side in _SIDES:
        rim = oval(side * 0.41 * look.eye_distance, -0.17, 0.31, 0.25)
        sheet.line(rim, shade, width, lift=0.15, closed=True)
        sheet.line(area((side * 0.72, -0.2), (side * 1.0, -0.24)), shade, width)
    sheet.line(bow((-0.1, -0.2), (0, -0.23), (0.1, -0.2)), shade, width, lift=0.2)


def _hair(sheet: Sheet) -> None:
    style, shade = sheet.look.hair_style, sheet.look.hair
    if style == 0:
        return
    right = [(1.04, -0.3), (1.08, -0.75), (0.98, -1.05), (0.75, -1.3), (0.4, -1.45), (0.0, -1.5)]
    crown = [(-x, y) for x, y in right] + right[-2::-1]
    line = -0.82 if style == 2 else -0.98
    front = [(0.94, -0.5), (0.88, line + 0.2), (0.68, line + 0.05), (0.3, line)]
    front += [(-x, y) for x, y in reversed(front)]
    if style == 4:  # parted on one side
        front = [
            (0.94, -0.5),
            (0.84, line + 0.22),
            (0.5, line + 0.1),
            (0.3, line - 0.1),
            (-0.1, line),
            (-0.4, line + 0.1),
        ]
        front += [(-0.75, line + 0.22), (-0.94, -0.5)]
    sheet.fill(np.array(crown + front), shade, flat=True)
    if style == 3:
        for side in _SIDES:
            strand = area((0.96, -0.8), (0.9, 0.0), (0.98, 0.9), (1.4, 1.3), (1.2, -0.6)) * (side, 1)
            sheet.fill(strand, shade, flat=True)


def _occlusion(sheet: Sheet) -> None:
    kind, look = sheet.look.occlusion, sheet.look
    side = 1.0 if sheet.rng.random() < 0.5 else -1.0
    if kind == 1:  # fingers of a hand at the chin
        for finger in range(3):
            x = 0.3 + 0.2 * finger
            tip = area((x, 1.6), (x - 0.1, 0.95 - 0.05 * finger)) * (side, 1)
            sheet.line(tip, sheet.skin(0.92), 3.4, flat=True)
    elif kind == 2:  # a dark object at the edge of the image
        sheet.fill(area((0.7, -1.6), (1.6, -1.6), (1.6, 1.6), (0.95, 1.6)) * (side, 1), 40.0, flat=True)
    elif kind == 3:  # a lock of hair over one brow
        sheet.fill(area((0.2, -1.2), (0.95, -1.0), (0.95, -0.35), (0.6, -0.55)) * (side, 1), look.hair, flat=True)
