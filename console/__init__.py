"""One page that shows a running deployment live: what it reads, the figures it makes, who may look."""
