//! Runs a model for the serving core: weights, pages, buckets.
