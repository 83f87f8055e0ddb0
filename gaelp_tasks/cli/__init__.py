"""`gaelp ...`: one file per group of verbs."""
