"""What is kept: requests and what came of them, training samples in order, histories of users."""
