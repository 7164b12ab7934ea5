"""How well the time of rounds and drafts is predicted while a real pair decodes under changing load."""
