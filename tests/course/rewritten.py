"""The chapters that are held to the bounds of the prose and whose answers are folded; in the end, all of them."""

REWRITTEN = (
    "00",
    "01",
    "07",
    "08",
    "09",
    "10",
    "11",
)
