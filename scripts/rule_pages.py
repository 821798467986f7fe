"""Write docs/rules/ from the rules of the scanners; a test fails when it was not run after a change."""

from pathlib import Path

from weightsmith.report.rules import pages
from weightsmith.trust.gate import all_rules

if __name__ == "__main__":
    folder = Path(__file__).parent.parent / "docs" / "rules"
    folder.mkdir(exist_ok=True)
    written = pages(all_rules().values())
    for old in folder.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        (folder / name).write_text(text, encoding="utf-8")
    print(f"{len(written)} pages in {folder}")
