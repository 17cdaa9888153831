"""`python -m fastmpl` is the command `fastmpl`."""

import sys

from fastmpl.cli import main

sys.exit(main())
