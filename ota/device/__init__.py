"""What the agent plugs in: fetcher, store, updater worker."""
