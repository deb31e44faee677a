"""Graphs and tapes as pictures and pages."""
