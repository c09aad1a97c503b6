"""What ads are bought together, and a projection that learns it (GR4AD, arXiv 2602.22732, UA-SID)."""
