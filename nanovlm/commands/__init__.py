"""The subcommands of `nanovlm`, one module each."""
