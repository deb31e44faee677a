"""Where NaN and infinite numbers begin, and why."""
