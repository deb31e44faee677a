"""Why a parameter gets no gradient, or a zero one."""
