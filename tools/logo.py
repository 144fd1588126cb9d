"""Draws the logo, `nbs/logo.svg`: the bin of the page's own icon, on its green. Run it again after a change here."""

from pathlib import Path

NBS = Path(__file__).resolve().parents[1] / "nbs"
GREEN, SIZE = "#1d7a4b", 32


def bin_path() -> str:
    "A lid with its handle, a body that narrows, and two ribs; in units of a square of 32."
    lid, handle = "M8 10h16", "M13 10V7.5h6V10"
    body, ribs = "M10 10l1.2 15h9.6L22 10", "M14 14v7M18 14v7"
    return lid + handle + body + ribs


def logo() -> str:
    pen = 'fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round" stroke-linejoin="round"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}">\n'
        f'<rect width="{SIZE}" height="{SIZE}" rx="8" fill="{GREEN}"/>\n'
        f'<path d="{bin_path()}" {pen}/>\n'
        "</svg>\n"
    )


if __name__ == "__main__":
    (NBS / "logo.svg").write_text(logo(), encoding="utf-8")
