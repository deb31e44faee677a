"""The step and the loop: gradients by the engine, updates by optax, checkpoints by Orbax, devices by JAX."""
