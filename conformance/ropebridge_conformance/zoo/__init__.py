"""Zoo: the layers that are judged, the calls they are put through, and their inputs."""
