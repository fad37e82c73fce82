"""Before the docs are built: one reference page per command, from the parsers themselves."""

from pathlib import Path


def on_config(config):
    """Write the pages, and put them into the navigation."""
    from ssl_kd.cli.reference import write

    pages = write(Path(config["docs_dir"]) / "reference")
    shown = [{f"ssl-kd {page.stem}": f"reference/{page.name}"} for page in pages]
    for section in config["nav"]:
        if "Reference" in section:
            section["Reference"] = [{"Commands": shown}, *section["Reference"]]
    return config
