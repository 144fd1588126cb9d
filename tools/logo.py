"""Draws the bin on green: the logo `nbs/logo.svg`, and the icons of the page. Run it again after a change here."""

from pathlib import Path

from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "trashsorting" / "static" / "page"
GREEN, SIZE = "#1d7a4b", 32
# A lid, its handle, a body that narrows, and two ribs; in units of a square of 32.
LINES = (
    ((8, 10), (24, 10)),
    ((13, 10), (13, 7.5), (19, 7.5), (19, 10)),
    ((10, 10), (11.2, 25), (20.8, 25), (22, 10)),
    ((14, 14), (14, 21)),
    ((18, 14), (18, 21)),
)


def bin_path() -> str:
    "The lines as SVG."
    return "".join("M" + "L".join(f"{x:g} {y:g}" for x, y in line) for line in LINES)


def logo() -> str:
    pen = 'fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">\n'
        f'<rect width="{SIZE}" height="{SIZE}" rx="8" fill="{GREEN}"/>\n'
        f'<path d="{bin_path()}" {pen}/>\n'
        "</svg>\n"
    )


def icon(side: int, maskable: bool = False) -> Image.Image:
    "The logo in pixels; a maskable one fills the square, and its bin stays in the circle that every mask leaves."
    unit = 4 * side / SIZE
    picture = Image.new("RGBA", (4 * side, 4 * side))
    pen = ImageDraw.Draw(picture)
    pen.rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 0 if maskable else 8 * unit, GREEN)
    scale = 0.8 if maskable else 1
    for line in LINES:
        points = [((x - 16) * scale * unit + 2 * side, (y - 16) * scale * unit + 2 * side) for x, y in line]
        pen.line(points, "white", round(2 * scale * unit), "curve")
        for x, y in (points[0], points[-1]):
            pen.circle((x, y), scale * unit, "white")
    return picture.resize((side, side), Image.Resampling.LANCZOS).quantize(64)


if __name__ == "__main__":
    for path in (ROOT / "nbs" / "logo.svg", PAGE / "icon.svg"):
        path.write_text(logo(), encoding="utf-8")
    for side in (192, 512):
        icon(side).save(PAGE / f"icon-{side}.png", optimize=True)
    icon(512, maskable=True).save(PAGE / "icon-maskable-512.png", optimize=True)
