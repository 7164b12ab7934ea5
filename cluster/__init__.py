"""The router, its transports, and the engine that runs them in one process."""
