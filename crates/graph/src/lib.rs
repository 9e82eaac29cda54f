//! Tracing as a backend: record a model once, replay or compile the graph.
