"""`python -m ropebridge_spec [path]` writes SPEC.md."""

import sys
from pathlib import Path

from ropebridge_spec.document import spec_document

Path(sys.argv[1] if len(sys.argv) > 1 else "SPEC.md").write_text(spec_document(), encoding="utf-8")
