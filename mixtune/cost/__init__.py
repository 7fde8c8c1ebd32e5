"""What a recipe will cost, here."""
