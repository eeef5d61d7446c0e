"""Results as one page that needs nothing else: families by hook points by dtypes, and every failure
with what it takes to look into it."""

from ropebridge_conformance.results.page.gathering import Digest, digest
from ropebridge_conformance.results.page.write import write_page

__all__ = ["Digest", "digest", "write_page"]
