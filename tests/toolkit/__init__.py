"""Tests of the toolkit: groups, scopes, streams, limits, rates, queues."""
