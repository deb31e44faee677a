"""Where a gradient goes wrong, why, and what to do. A report is data first, then text."""
