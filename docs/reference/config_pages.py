"""Writes reference/config.md from conf/ when the site is built: every group, choice and key, with its comment."""

from pathlib import Path

import mkdocs_gen_files

CONF = Path(__file__).resolve().parents[2] / "conf"
ROOT_FILES = ("base", "train", "dissect", "edit")


def section(path: Path, title: str, level: int) -> str:
    return f"{'#' * level} {title}\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```\n\n"


def config_page() -> str:
    page = "# Config\n\nEvery file of `conf/`. `group=choice` takes a file of a group; `key=value` sets a key.\n\n"
    page += "## Keys at the top\n\n"
    page += "".join(section(CONF / f"{name}.yaml", f"{name}.yaml", 3) for name in ROOT_FILES)
    for group in sorted({path.parent for path in CONF.rglob("*.yaml")} - {CONF}):
        name = group.relative_to(CONF).as_posix()
        page += f"## {name}\n\n"
        page += "".join(section(path, f"{name}={path.stem}", 3) for path in sorted(group.glob("*.yaml")))
    return page


with mkdocs_gen_files.open("reference/config.md", "w") as file:
    file.write(config_page())
