"""JupyterLab for the course: `jupyter lab --config=.jupyter/jupyter_lab_config.py chapters/00_start_here.ipynb`."""

import os
from pathlib import Path

here = Path(__file__).resolve().parent
c = get_config()
# The whole repository, whichever folder it is started in: chapters link to exercises, solutions and the package.
c.ServerApp.root_dir = str(here.parent)
# overrides.json: no question about news; a lever's controls are saved with its picture; long lines of code wrap.
c.LabApp.app_settings_dir = str(here)
# custom.css: stored figures shrink with the window.
c.LabApp.custom_css = True
c.ServerApp.tornado_settings.update({"static_custom_path": [str(here)]})
# Chapters and exercises are listed once, as notebooks, without the text that they are built from and its settings.
c.ContentsManager.hide_globs = ["__pycache__", "*.pyc", ".DS_Store", "*~", "[0-9][0-9]_*.py", "ruff.toml"]
if hasattr(os, "geteuid") and os.geteuid() == 0:  # in a container
    print("You are root. JupyterLab lets whoever can reach it run commands as root: keep its address to yourself.")
    c.ServerApp.allow_root = True
