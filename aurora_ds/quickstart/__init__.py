"""The built-in toy world: generated photographs with captions, and the small backbone trained on its source domain."""
