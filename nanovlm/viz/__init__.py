"""Pictures: pure functions from state to a Figure. They know torch and matplotlib, and no widget."""
