"""The appearance of a drawn face apart from its expression: person, pose, light and camera."""

from __future__ import annotations

from typing import NamedTuple

from numpy.random import Generator


class Appearance(NamedTuple):
    """Nuisance parameters of an image; lengths are in units of half a head's width, shades in grey levels.

    Attributes:
        yaw, pitch, roll: head pose, in radians.
        scale: size of the head, in pixels of the 48 x 48 image.
        shift_x, shift_y: position of the head, in pixels.
        width, length: proportions of the head.
        eye_size, eye_distance, brow_rest, brow_weight, lip_weight, nose_length, mouth_rest: the person's features.
        skin, background: grey levels.
        hair: grey level; ``hair_style``: 0 bald, 1 short, 2 fringe, 3 long, 4 parted.
        beard, moustache: strength in [0, 1], 0 is none.
        glasses: 0 none, 1 thin, 2 thick rims.
        age: strength of wrinkles at rest, [0, 1].
        light_x, light_y: gradient of the light over the image.
        contrast: contrast of the whole image.
        blur: standard deviation in pixels.
        noise: standard deviation in grey levels.
        occlusion: 0 none, 1 a hand at the chin, 2 an object at one edge, 3 hair over one brow.
        texture: random seed of the remaining details: noise, tear drops, side of the occlusion.
    """

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    scale: float = 18.3
    shift_x: float = 0.0
    shift_y: float = 0.0
    width: float = 1.0
    length: float = 1.0
    eye_size: float = 1.0
    eye_distance: float = 1.0
    brow_rest: float = 0.0
    brow_weight: float = 1.0
    lip_weight: float = 1.0
    nose_length: float = 1.0
    mouth_rest: float = 0.0
    skin: float = 180.0
    background: float = 90.0
    hair: float = 45.0
    hair_style: int = 1
    beard: float = 0.0
    moustache: float = 0.0
    glasses: int = 0
    age: float = 0.2
    light_x: float = 0.0
    light_y: float = 0.0
    contrast: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    occlusion: int = 0
    texture: int = 0


def draw_appearance(rng: Generator) -> Appearance:
    """A random appearance, independent of the expression."""
    normal = rng.standard_normal(16)
    uniform = rng.random(16)
    skin = 95 + 130 * uniform[0] ** 0.7
    hair = 20 + 60 * uniform[1] if uniform[2] < 0.75 else 110 + 100 * uniform[1]
    bearded = uniform[3] < 0.14
    return Appearance(
        yaw=float(0.2 * normal[0]),
        pitch=float(0.1 * normal[1]),
        roll=float(0.1 * normal[2]),
        scale=float(18.3 + 0.9 * normal[3]),
        shift_x=float(1.1 * normal[4]),
        shift_y=float(1.1 * normal[5]),
        width=float(1 + 0.05 * normal[6]),
        length=float(1 + 0.05 * normal[7]),
        eye_size=float(1 + 0.08 * normal[8]),
        eye_distance=float(1 + 0.05 * normal[9]),
        brow_rest=float(0.02 * normal[10]),
        brow_weight=float(max(0.5, 1 + 0.25 * normal[11])),
        lip_weight=float(max(0.5, 1 + 0.22 * normal[12])),
        nose_length=float(1 + 0.08 * normal[13]),
        mouth_rest=float(0.02 * normal[14]),
        skin=float(skin),
        background=float(20 + 200 * uniform[4]),
        hair=float(min(hair, skin - 30) if uniform[2] < 0.9 else hair),
        hair_style=int(uniform[5] * 5) if uniform[5] > 0.08 else 0,
        beard=float(0.3 + 0.6 * uniform[6]) if bearded else 0.0,
        moustache=float(0.4 + 0.6 * uniform[7]) if (bearded and uniform[8] < 0.8) or uniform[8] < 0.04 else 0.0,
        glasses=(1 if uniform[9] < 0.08 else 2) if uniform[9] < 0.12 else 0,
        age=float(uniform[10] ** 1.5),
        light_x=float(0.25 * (2 * uniform[11] - 1)),
        light_y=float(0.15 * (2 * uniform[12] - 1)),
        contrast=float(0.7 + 0.4 * uniform[13]),
        blur=float(0.75 * uniform[14] ** 2),
        noise=float(1 + 7 * uniform[15] ** 2),
        occlusion=int(rng.choice(4, p=(0.92, 0.03, 0.03, 0.02))),
        texture=int(rng.integers(2**31)),
    )
