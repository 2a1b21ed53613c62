# %% [markdown]
# # 07 Data
#
# Skeleton.

# %% [markdown] tags=["stamped"]
# [![Open in Colab][badge]][colab] ·
# [on GitHub][github] ·
# [← 06 The vision-language model](06_vision_language_model.ipynb) ·
# [12 Shape tracing →](12_shape_tracing.ipynb) ·
# [exercises](../exercises/07_data.ipynb)
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/07_data.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/07_data.ipynb

# %% tags=["stamped"]
# Set-up, the same in every notebook: use the installed nanovlm; in Colab, install it once.
import sys
from importlib import import_module

try:
    import_module("nanovlm.course")
except ImportError:
    package = "nanovlm[notebook] @ git+https://github.com/nanovlm-course/nanovlm@v0.1.0"
    if "google.colab" not in sys.modules:
        raise ModuleNotFoundError(
            "This kernel has no nanovlm. In a clone of the repository `make lab` sets everything up; elsewhere run\n"
            f'    pip install "{package}"\nand start the kernel again.'
        ) from None
    import subprocess

    subprocess.run([sys.executable, "-m", "pip", "install", "-q", package], check=True)
    import_module("nanovlm.course")

# %%
from nanovlm.course import quiz

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/07_data.ipynb) ([in Colab][exercises]): 9 of them, about 113 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/07_data.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 7.1 | Which turns are worth learning? (`data.messages_of`) | ●○○ | 10 |
# | 7.2 | Measure what closed eyes score (`data.blind_score`) | ●○○ | 10 |
# | 7.3 | Any file, as a person would see it (`data.open_picture`) | ●●○ | 15 |
# | 7.4 | No picture on both sides (`data.split_by_picture`) | ●●○ | 12 |
# | 7.5 | Rows of one length (`data.pad_batch`) | ●●○ | 12 |
# | 7.6 | Write the test that would have told (`data.test_pad_batch`) | ●●○ | 12 |
# | 7.7 | Which samples share a row? (`data.pack`) | ●●○ | 12 |
# | 7.8 | Mend it: a row that reads its neighbour (`data.document_mask`) | ●●● | 15 |
# | 7.9 | Batch number n, asked alone (`data.resumable_order`) | ●●● | 15 |
#
# Next: [12 Shape tracing](12_shape_tracing.ipynb)
