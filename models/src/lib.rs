//! Language models, one file each, written once over any backend.
