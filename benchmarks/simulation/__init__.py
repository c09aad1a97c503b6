"""The paper's Table 1, re-enacted: a response model for users, bids for advertisers, auctions between."""
