def explain(error, t):
    error.trace = t
