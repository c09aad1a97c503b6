"""Load control: what a search costs here, what arrives, which widths that allows, who may come in."""
