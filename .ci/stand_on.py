"""`python .ci/stand_on.py SITE_PACKAGES`: this environment also finds the packages of another one, behind its own."""

import sys
import sysconfig
from pathlib import Path

(beneath,) = sys.argv[1:]
# addsitedir, so that the other one's .pth files count too: an editable install is one of them.
line = f"import site; site.addsitedir({beneath!r})\n"
Path(sysconfig.get_path("purelib"), "beneath.pth").write_text(line, encoding="utf-8")
