"""What HTTP services of ours share: a guarded server, bounded bodies, whose names are ours."""
