"""Images: how they come to the network."""
