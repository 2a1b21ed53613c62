# %% [markdown]
# # 09 Generation
#
# From logits to words.

# %% [markdown] tags=["stamped"]
# [![Open in Colab][badge]][colab] ·
# [on GitHub][github] ·
# [← 06 The vision-language model](06_vision_language_model.ipynb) ·
# [12 Shape tracing →](12_shape_tracing.ipynb) ·
# [exercises](../exercises/09_generation.ipynb)
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [colab]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/chapters/09_generation.ipynb
# [github]: https://github.com/nanovlm-course/nanovlm/blob/main/chapters/09_generation.ipynb

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

# %% [markdown] tags=["stamped"]
# ## Your turn
#
# [Open the exercises](../exercises/09_generation.ipynb) ([in Colab][exercises]): 9 of them, about 126 minutes.
#
# [exercises]: https://colab.research.google.com/github/nanovlm-course/nanovlm/blob/main/exercises/09_generation.ipynb
#
# | | exercise | difficulty | minutes |
# |---|---|---|---|
# | 9.1 | The loop that writes (`generation.greedy`) | ●○○ | 12 |
# | 9.2 | Mend it: the cache that forgets what it turned (`generation.cached_attention`) | ●●○ | 15 |
# | 9.3 | Write the test: is this cache right? (`generation.cache_test`) | ●●○ | 15 |
# | 9.4 | A threshold that moves with the best (`generation.min_p`) | ●○○ | 8 |
# | 9.5 | The nucleus (`generation.top_p`) | ●●○ | 12 |
# | 9.6 | Draw a token (`generation.sample`) | ●●○ | 12 |
# | 9.7 | One step of beam search (`generation.beam_step`) | ●●● | 20 |
# | 9.8 | What can be shown already? (`generation.stream_text`) | ●●○ | 12 |
# | 9.9 | Which guesses may stay? (`generation.speculative_accept`) | ●●● | 20 |
#
# Next: [12 Shape tracing](12_shape_tracing.ipynb)
