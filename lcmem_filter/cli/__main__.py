"""``python -m lcmem_filter.cli`` is ``lcmem-filter``."""

from __future__ import annotations

import sys

from .main import main

if __name__ == "__main__":
    sys.exit(main())
