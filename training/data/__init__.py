"""Table schemas, sources (one file each), time split, event log and samples."""
