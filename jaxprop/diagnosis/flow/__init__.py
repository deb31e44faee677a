"""Where gradients vanish, explode or cancel, by depth and through the steps of a loop."""
