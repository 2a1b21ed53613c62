# %% [markdown]
# # 15 Your own pictures
#
# The pocket model learns something that is not in its data.

# %%
import torch
