"""Models, trees, caches, sampling and runners: everything that decodes, nothing that serves."""
