"""Fallback fonts for characters that the default font lacks: Chinese, Japanese, Korean, Hindi, Thai, emoji."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache, lru_cache

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text

log = logging.getLogger(__name__)

USUAL = "DejaVu Sans"
_BROAD = ("noto sans", "source han", "wenquanyi", "arial unicode", "hiragino", "microsoft", "droid", "noto")
_NO_LETTERS = ("Last Resort", "STIXNonUnicode", "STIXSize", "cm")  # boxes, private symbols, mathematics


def with_letters(figure: Figure) -> None:
    """Set fallback fonts on the texts of a figure; warns of characters that no installed font has."""
    for axes in figure.axes:
        axes.get_xticklabels(), axes.get_yticklabels()  # creates their texts
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    fallbacks = fonts_for(text.get_text() for text in texts)
    if fallbacks:
        for text in texts:
            text.set_fontfamily([USUAL, *fallbacks])


def fonts_for(texts: Iterable[str]) -> list[str]:
    """Installed fonts that together have the characters which the default font lacks; usually none."""
    letters = frozenset(ord(letter) for text in texts for letter in text if not letter.isspace())
    lacking = letters - _letters(font_manager.findfont(USUAL))
    return list(_fonts(lacking)) if lacking else []


@lru_cache
def _fonts(lacking: frozenset[int]) -> tuple[str, ...]:
    found: list[str] = []
    left = set(lacking)
    for name, path in _installed():
        if known := left & _letters(path):
            found.append(name)
            left -= known
        if not left:
            return tuple(found)
    log.warning(
        "No installed font has the characters %s: figures show boxes instead. Install one that has them, e.g. the "
        "package fonts-noto-cjk or fonts-noto.",
        "".join(map(chr, sorted(left)[:20])),
    )
    return tuple(found)


@lru_cache
def _installed() -> tuple[tuple[str, str], ...]:
    """Name and file of each family's upright font, those of broad coverage first."""
    fonts = {font.name: font.fname for font in font_manager.fontManager.ttflist if font.style == "normal"}
    named = [(name, path) for name, path in fonts.items() if not name.startswith(_NO_LETTERS)]

    def rank(font: tuple[str, str]) -> tuple[int, str]:
        places = [place for place, word in enumerate(_BROAD) if word in font[0].lower()]
        return min(places, default=len(_BROAD)), font[0]

    return tuple(sorted(named, key=rank))


@cache
def _letters(path: str) -> frozenset[int]:
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):  # a font file that FreeType cannot read
        return frozenset()
