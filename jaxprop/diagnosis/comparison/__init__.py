"""Where two runs diverge, and what lower precision costs."""
