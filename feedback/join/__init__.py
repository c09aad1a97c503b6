"""From served records and feedback to samples: the rules, and the transaction that applies them."""
