//! Layers over any backend: Linear, Norm, Attention, Mlp, Embedding.
