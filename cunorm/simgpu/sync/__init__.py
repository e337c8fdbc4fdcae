"""What lanes wait for: barriers, clusters, mbarriers and copies in flight."""
