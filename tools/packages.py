"""Draws `nbs/images/packages.svg`, the picture of the packages in the README; `make export` calls it.

Names, order and sentences come from `tools/website.py`: the layers of import-linter in `pyproject.toml` and the first
line of each package's docstring.
"""

from html import escape

from website import NBS, packages

PICTURE = NBS / "images" / "packages.svg"
WIDTH, ROW, GAP, EDGE, NAME = 920, 40, 8, 16, 128  # pixels; NAME: width of the name's box
GREEN, LIGHT, INK = "#1d7a4b", "#e8f3ec", "#1f2933"
FONT = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'


def text(x: int, y: int, words: str, style: str) -> str:
    return f'<text x="{x}" y="{y}" {style} {FONT}>{escape(words)}</text>'


def row(top: int, package: str, sentence: str) -> list[str]:
    "A package's name and its sentence, in a box."
    return [
        f'<rect x="{EDGE}" y="{top}" width="{WIDTH - 2 * EDGE}" height="{ROW}" rx="8" fill="{LIGHT}"/>',
        f'<rect x="{EDGE}" y="{top}" width="{NAME}" height="{ROW}" rx="8" fill="{GREEN}"/>',
        text(EDGE + NAME // 2, top + 26, package, 'fill="#fff" font-size="17" font-weight="600" text-anchor="middle"'),
        text(EDGE + NAME + 16, top + 26, sentence.replace("`", ""), f'fill="{INK}" font-size="15"'),
    ]


def picture() -> str:
    "The SVG: a row for each package, the lowest layer at the bottom. It has its own background, for dark pages."
    rows = list(reversed(packages().items()))
    bottom = EDGE + len(rows) * (ROW + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 36}" width="{WIDTH}">',
        f'<rect width="{WIDTH}" height="{bottom + 36}" rx="10" fill="#fff"/>',
    ]
    for number, (package, sentence) in enumerate(rows):
        parts += row(EDGE + number * (ROW + GAP), package, sentence)
    parts.append(text(EDGE, bottom + 16, "A package imports only packages below it.", f'fill="{INK}" font-size="13"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_text(picture(), encoding="utf-8")
