"""From a checkpoint to a model bundle and a rendered model repository."""
