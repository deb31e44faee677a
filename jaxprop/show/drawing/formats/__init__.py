"""One file for each format a drawing is written in."""
