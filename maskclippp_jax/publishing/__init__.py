"""A run made into something for others: a repository of the hub, a page."""
