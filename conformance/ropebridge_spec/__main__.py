"""`python -m ropebridge_spec` writes SPEC.md, and the hook table of README.md, in the folder it is
called in."""

from pathlib import Path

from ropebridge_spec.document import spec_document, with_hook_table

Path("SPEC.md").write_text(spec_document(), encoding="utf-8")
readme = Path("README.md")
readme.write_text(with_hook_table(readme.read_text(encoding="utf-8")), encoding="utf-8")
