"""`python -m nanovlm` is the command `nanovlm`."""

import sys

from nanovlm.cli import main

sys.exit(main())
