"""See it: formulas, explanations, pictures and pages of a `Graph` or a `Tape`. Nothing here runs a program."""
