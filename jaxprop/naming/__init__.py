"""Where in the user's source an equation comes from, and which variable its value was assigned to."""
