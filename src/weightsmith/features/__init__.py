"""Features: recipes, prompt sets, extraction methods, and the choice of layer and amount."""
