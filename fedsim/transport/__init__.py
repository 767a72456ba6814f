"""How a round reaches the clients: in this process, or in others."""
