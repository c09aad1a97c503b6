"""What is run: each recipe is a main of about a page over the one loop."""
