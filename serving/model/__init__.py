"""What a version is: the bundle on disk, the one in use, and the features its graphs read."""
